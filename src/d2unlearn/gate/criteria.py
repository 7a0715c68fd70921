"""The online gate inside `transformers.generate`: it is fed while tokens are chosen, and stops the rows that it refuses.

The decision sits in a stopping criterion, not in a logits processor: it needs no copy of the logits, no end token, and
nothing that comes after it (warpers, bans, penalties) can undo it. The one token that was chosen when a row is refused never
leaves: the refusal takes the place of the row's whole answer.

Readers say which energies the tokens that were just chosen belong to: of the last position, or of a draft's accepted tokens. In
beam search rows change places between two looks, see `beams`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList

from d2unlearn.errors import GateError
from d2unlearn.gate.online import Decision, OnlineGate, Trace
from d2unlearn.gate.recorder import EnergyRecorder
from d2unlearn.gate.score import Bools, Score
from d2unlearn.stats import Floats

ReadEnergies = Callable[[Tensor], list[Floats]]
"""Told the ids so far, [B, T]: for each token chosen since the last look, the energies [B] of the logits it was chosen from."""

Listener = Callable[[Tensor, OnlineGate], None]
"""Told after each look, and when all is over: the answers so far, [B, t] token ids, and the gate."""


class LastPosition:
    """One token was chosen, from the logits of the last position.

    `prompt_passes`: forward passes that the prompt takes; `passes`: that every token after it takes. None: any number.
    """

    def __init__(self, recorder: EnergyRecorder, prompt_passes: int | None = 1, passes: int | None = 1) -> None:
        self._recorder = recorder
        self._next, self._passes = prompt_passes, passes

    def __call__(self, input_ids: Tensor) -> list[Floats]:
        passes, self._next = self._next, self._passes
        return [np.array(self._recorder.take(passes)[:, -1].tolist())]


class AcceptedDrafts:
    """Assisted decoding, where one forward pass of the model judges several drafted tokens of one row.

    Only tokens that were accepted are read: of the recorder's positions (`every_position`) the first ones from the last
    token before the draft on. Drafts that were rejected leave no trace, nor do the passes of an assistant.
    """

    def __init__(self, recorder: EnergyRecorder, prompt_length: int) -> None:
        self._recorder = recorder
        self._prompt_length = prompt_length
        self._n_read = 0

    def __call__(self, input_ids: Tensor) -> list[Floats]:
        energies = self._recorder.take(None)[0].tolist()
        accepted = input_ids.shape[1] - self._prompt_length - self._n_read
        whole_prompt = self._n_read == 0 and len(energies) == self._recorder.n_fed
        start = self._prompt_length - 1 if whole_prompt else 0
        if not 0 < accepted <= len(energies) - start:
            raise GateError(
                f"{accepted} tokens were accepted from logits of {len(energies) - start} positions: the gate cannot tell which "
                "logits to judge; decode without an assistant"
            )
        self._n_read += accepted
        return [np.array([energy]) for energy in energies[start : start + accepted]]


@dataclass(eq=False)
class GateCriterion(StoppingCriteria):
    """Feeds the gate with each chosen token's energies and stops the rows that it refuses. For rows that advance together.

    `score`, `threshold`, `others`, `leads`: the gate's, see `OnlineGate`. `ends`: ids that end an answer. `criteria`: the
    caller's own stopping criteria, asked here so that a row which they stop is looked at for the last time.
    """

    read: ReadEnergies
    score: Score | None
    threshold: float
    ends: frozenset[int]
    criteria: StoppingCriteriaList | None = None
    listener: Listener | None = None
    others: Floats | None = None
    leads: Floats | None = None
    gate: OnlineGate | None = field(default=None, init=False)
    prompt_length: int = field(default=0, init=False)

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
        """input_ids: [B, T], what was chosen last at the end. Returns bool [B]: the rows that are finished."""
        steps = self.read(input_ids)
        if self.gate is None:
            self.gate = OnlineGate(self.score, self.threshold, len(input_ids), self.others, self.leads)
            self.prompt_length = input_ids.shape[1] - len(steps)
        stopped = None if self.criteria is None else self.criteria(input_ids, scores, **options)
        for column, energies in enumerate(steps, start=-len(steps)):
            self.gate.update(energies, ended_rows(input_ids[:, column], self.ends, stopped if column == -1 else None))
        if self.listener is not None:
            self.listener(input_ids[:, self.prompt_length :], self.gate)
        if stopped is None:
            stopped = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        refused = self.gate.refused
        return stopped | torch.from_numpy(refused.copy()).to(stopped.device) if refused.any() else stopped

    def finish(self, sequences: Tensor, output: Any) -> tuple[list[Decision], list[Trace]]:
        """Generation is over: look at the rows that reached the limit for the last time. One decision and trace a row."""
        if self.gate is None:
            return [], []
        self.gate.finish()
        answers = sequences[:, self.prompt_length :]
        if self.listener is not None:
            self.listener(answers, self.gate)
        return self.gate.decisions(), self.gate.traces(answers.tolist())


def ended_rows(tokens: Tensor, ends: frozenset[int], stopped: Tensor | None) -> Bools | None:
    """Rows whose answer ends with the token [B] that was chosen, by an end token or the caller's criteria; None for none."""
    ended = [token in ends for token in tokens.tolist()]
    if stopped is not None:
        ended = [one or other for one, other in zip(ended, stopped.tolist(), strict=True)]
    return np.array(ended) if any(ended) else None
