"""The gate for engines that show the logits of one position at a time and let a token be forced, and nothing else.

A refusal cannot take back what was sent: an answer that is refused later goes on with a line break and the refusal. And it is
not known whether a position's token will end the answer, so an end is forbidden where the look at it would refuse, unless the
model would choose it: then the answer is refused there.

Decisions are a function of a request's tokens and energies by position, never of the number of calls: engines ask again for
the same position when they cut a long prompt in pieces, and forget and recompute requests when memory runs out.

Such an engine runs the model, and nobody else can. So the gate's probe prompts come as requests like others (`vllm_probes` asks
them): their energies are compared with those that were calibrated, and until each has been asked everything else is refused.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from d2unlearn.errors import GateError
from d2unlearn.gate.online import OnlineGate
from d2unlearn.gate.rule import GateRule, RefusalTokens
from d2unlearn.refusals import refusal_index

ENGINE_TOLERANCE = 0.05
"""nats, the least that a probe may differ by in another engine, whose kernels round otherwise; what changes weights moves some
probe by more (`experiments/probe_margins.py`)."""

SESSIONS_KEPT = 4096
"""Requests whose decisions are kept beyond their last position, in case the engine has forgotten them for the time being."""


@dataclass(frozen=True)
class TokenConstraint:
    """What may follow at a position: `forced` alone (None: what the model likes); and whether the answer must not end here."""

    forced: int | None
    no_end: bool = False


class ProbeRequests:
    """Which of a rule's probe prompts an engine's model has not yet been asked."""

    def __init__(self, rule: GateRule) -> None:
        self._rule = rule
        self._energies = {probe.token_ids: probe.energy for probe in rule.probes}
        self._waiting = set(self._energies)
        self._tolerance = max(rule.probe_tolerance, ENGINE_TOLERANCE)

    @property
    def n_waiting(self) -> int:
        """How many are still to be asked."""
        return len(self._waiting)

    def is_one(self, prompt: Sequence[int]) -> bool:
        """Whether a request's prompt is a probe that is still to be asked."""
        return tuple(prompt) in self._waiting

    def note(self, prompt: Sequence[int], energy: float) -> None:
        """A probe and its energy in this engine; one that is not known (no finite number) asks nothing.

        Raises `GateError` when it is another than with the calibrated weights.
        """
        if not math.isfinite(energy):
            return
        moved = abs(energy - self._energies[tuple(prompt)])
        if moved > self._tolerance:
            raise GateError(
                f"the engine does not run the model that was calibrated: the energy of a probe prompt differs by {moved:.3g} "
                f"nats (allowed: {self._tolerance:.3g}); serve the folder and dtype that were calibrated"
            )
        self._waiting.discard(tuple(prompt))


class Session:
    """One request. `ends`: ids that end its answer; `limit`: the most tokens that it may have, None for no limit.

    Positions count from 0, the one that the answer's first token is chosen from. `key` stands for the prompt and the tokens
    before the position judged last.
    """

    def __init__(
        self, rule: GateRule, tokens: RefusalTokens, prompt: Sequence[int], ends: Sequence[int], limit: int | None
    ) -> None:
        self._rule = rule
        self._limit = limit
        self._refusal = tokens.refusals[refusal_index(rule.seed, prompt, len(tokens.refusals))]
        self._line_break = tokens.line_break
        self._end = tokens.ends[0]
        self._gate = OnlineGate(rule.score, rule.threshold, 1)
        self.ends = tuple(ends)
        self.energies: list[float] = []
        self.refused_at: int | None = None
        self.prompt = tuple(prompt)
        self.key = hash(self.prompt)

    def judge(self, position: int, energy: float) -> TokenConstraint:
        """Take the energy of a position, again if it was taken before. Refuses when the positions before it are not known."""
        if position > len(self.energies):
            self.refused_at = position if self.refused_at is None else self.refused_at
            self.energies += [float("nan")] * (position - len(self.energies))
        elif position < len(self.energies):
            self._rewind(position)
        self.energies.append(energy)
        if self.refused_at is None:
            self._gate.update(np.array([energy]))
            self.refused_at = position if self._gate.refused[0] else None
        if self.refused_at is not None:
            return TokenConstraint(self._refusal_token(position - self.refused_at))
        if not self._gate.refused_if_ended()[0]:
            return TokenConstraint(None)
        if self._limit is not None and position + 1 >= self._limit:
            return self.refuse(position)
        return TokenConstraint(None, no_end=True)

    def refuse(self, position: int) -> TokenConstraint:
        """Refuse at the position judged last."""
        self.refused_at = position
        return TokenConstraint(self._refusal_token(0))

    def refuse_from_start(self, position: int) -> TokenConstraint:
        """Refuse as if it had been at the prompt, whatever was chosen since."""
        self.refused_at = 0
        return TokenConstraint(self._refusal_token(position))

    def go_on_from(self, other: Session, position: int) -> None:
        """Take over what is known of the positions before this one."""
        self.energies = list(other.energies)
        self.refused_at = other.refused_at
        self._rewind(position)

    def _rewind(self, position: int) -> None:
        """Forget this position and those after it."""
        del self.energies[position:]
        if self.refused_at is not None and self.refused_at >= position:
            self.refused_at = None
        self._gate = OnlineGate(self._rule.score, self._rule.threshold, 1)
        for energy in self.energies[: self.refused_at]:
            self._gate.update(np.array([energy]))

    def _refusal_token(self, index: int) -> int:
        """The refusal's token at an index; the end token from its end on."""
        tokens = [*(self._line_break if self.refused_at else ()), *self._refusal]
        return tokens[index] if index < len(tokens) else self._end


class Sessions:
    """Requests under way, found again by their tokens when the engine has forgotten them: same tokens, same energies."""

    def __init__(self, rule: GateRule, tokens: RefusalTokens) -> None:
        self._rule = rule
        self._tokens = tokens
        self._kept: OrderedDict[int, Session] = OrderedDict()
        self.probes = ProbeRequests(rule)

    def begin(self, prompt: Sequence[int], answer: Sequence[int], ends: Sequence[int], limit: int | None) -> Session:
        """A request that has its `answer` tokens so far. Without any record of them it will be refused."""
        session = Session(self._rule, self._tokens, prompt, sorted({*self._tokens.ends, *ends}), limit)
        for token in answer[:-1]:
            session.key = hash((session.key, token))
        before = self._kept.get(session.key) if answer else None
        if before is not None:
            session.go_on_from(before, len(answer))
        return session

    def judge(self, session: Session, position: int, last_token: int | None, energy: float) -> TokenConstraint:
        """`Session.judge`, noted. `last_token`: the answer's latest token, which this position was fed (None at the first)."""
        if position >= len(session.energies) and last_token is not None:
            if self._kept.get(session.key) is session:
                del self._kept[session.key]
            session.key = hash((session.key, last_token))
        constraint = session.judge(position, energy)
        if self.probes.is_one(session.prompt):
            if position > 0:  # only now were all pieces of the prompt fed
                self.probes.note(session.prompt, session.energies[0])
            constraint = session.refuse_from_start(position)
        elif self.probes.n_waiting:
            constraint = session.refuse_from_start(position) if session.refused_at is None else constraint
        self._kept[session.key] = session
        self._kept.move_to_end(session.key)
        if len(self._kept) > SESSIONS_KEPT:
            self._kept.popitem(last=False)
        return constraint
