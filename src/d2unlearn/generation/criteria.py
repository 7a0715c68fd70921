"""The gate at work inside `transformers.generate`: decides row by row while tokens are chosen.

The decision sits in a stopping criterion, not in a logits processor: it needs no copy of the logits, no end token, and
nothing that comes after it (warpers, bans, penalties) can undo it. It is a function of the positions' energies alone. The
one token that was chosen when a row is refused never leaves: the refusal takes the place of the row's whole answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList

from d2unlearn.errors import GateError
from d2unlearn.gate.recorder import EnergyRecorder
from d2unlearn.gate.score import Bools, Floats, RunningScore, Score


class Decides(Protocol):
    """A gate, or the part of it that travels."""

    @property
    def score(self) -> Score: ...

    @property
    def threshold(self) -> float: ...


@dataclass(frozen=True)
class Decision:
    """What the gate decided on one request. `energy`: free energy (nats) at the last prompt position.

    Refused when `score` exceeds `threshold`; both None when no gate looked. `n_tokens`: tokens that were generated, for a
    refused request until it was decided (0: at the prompt; it cost one forward pass). A refused request's `score` is the
    one that was decided by; the answer was not carried on to see a higher one.
    """

    refused: bool
    energy: float
    score: float | None
    threshold: float | None
    n_tokens: int


class Watch(StoppingCriteria):
    """Scores each row after each chosen token and stops those that are refused. For rows that advance together.

    `gate` None: notes the prompt's energies, refuses nothing. `ends`: ids that end an answer. `criteria`: the caller's own
    stopping criteria, asked here so that a row which they stop is looked at for the last time. `forwards`: passes that the
    prompt takes (None: any number, as with chunked prefill).
    """

    def __init__(
        self,
        gate: Decides | None,
        recorder: EnergyRecorder,
        ends: Sequence[int],
        *,
        criteria: StoppingCriteriaList | None = None,
        forwards: int | None = 1,
    ) -> None:
        self._gate = gate
        self._recorder = recorder
        self._threshold = math.inf if gate is None else gate.threshold
        self._ends = frozenset(ends)
        self._criteria = criteria
        self._forwards = forwards
        self._running: RunningScore | None = None
        self._none: Tensor | None = None
        self.prompt_length = 0
        self.n_judged = 0
        """Tokens of each row that were looked at."""
        self.energies = np.zeros(0)
        self.refused = np.zeros(0, dtype=np.bool_)
        self.lengths = np.zeros(0, dtype=np.int64)

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
        """input_ids: [B, T], what was chosen last at the end. Returns bool [B]: the rows that are finished."""
        steps = self._steps(input_ids)
        if self._none is None:
            self._begin(steps[0], input_ids)
        stopped = None if self._criteria is None else self._criteria(input_ids, scores, **options)
        tokens = input_ids[:, -len(steps) :].tolist()
        for place, energies in enumerate(steps):
            last = place == len(steps) - 1
            self._look(energies, self._ended([row[place] for row in tokens], stopped if last else None))
        return self._finished(stopped)

    def finish(self, length: int) -> None:
        """Generation is over, with `length` tokens: look at the rows that reached the limit for the last time."""
        going = self.lengths < 0
        self.lengths[going] = length
        if self._running is not None:
            self.refused |= going & (self._running.finish() > self._threshold)

    def decisions(self) -> list[Decision]:
        """One for each row of the batch, in order."""
        threshold = None if self._gate is None else self._threshold
        best = [None] * len(self.energies) if self._running is None else self._running.best.tolist()
        return [
            Decision(bool(refused), float(energy), score, threshold, int(length) - int(refused))
            for refused, energy, score, length in zip(self.refused, self.energies, best, self.lengths, strict=True)
        ]

    def _steps(self, input_ids: Tensor) -> list[Floats]:
        """For each token that was chosen since the last look the energies [B] that it was chosen from: here one token."""
        forwards, self._forwards = self._forwards, None if self._gate is None else 1
        return [np.array(self._recorder.take(forwards)[:, -1].tolist())]

    def _begin(self, energies: Floats, input_ids: Tensor) -> None:
        n_rows = len(energies)
        self.energies = energies
        self.prompt_length = self.prompt_length or input_ids.shape[1] - 1
        self.refused = np.zeros(n_rows, dtype=np.bool_)
        self.lengths = np.full(n_rows, -1, dtype=np.int64)
        self._running = None if self._gate is None else RunningScore(self._gate.score, n_rows)
        self._none = torch.zeros(n_rows, dtype=torch.bool, device=input_ids.device)

    def _look(self, energies: Floats, ended: Bools | None) -> None:
        self.n_judged += 1
        finished = ended
        if self._running is not None:
            best = self._running.update(energies, ended)
            if best.max() > self._threshold:
                refused = (self.lengths < 0) & (best > self._threshold)
                self.refused |= refused
                self._running.stop(refused)
                finished = self.refused if ended is None else self.refused | ended
        if finished is not None:
            self.lengths[(self.lengths < 0) & finished] = self.n_judged

    def _ended(self, tokens: Sequence[int], stopped: Tensor | None) -> Bools | None:
        """Rows whose answer ends with its token, by an end token or the caller's criteria; None for none."""
        ended = [token in self._ends for token in tokens]
        if stopped is not None:
            ended = [one or other for one, other in zip(ended, stopped.tolist(), strict=True)]
        return np.array(ended) if any(ended) else None

    def _finished(self, stopped: Tensor | None) -> Tensor:
        assert self._none is not None
        done = torch.from_numpy(self.refused.copy()).to(self._none.device) if self.refused.any() else self._none
        return done if stopped is None else done | stopped


class AssistedWatch(Watch):
    """The same for assisted decoding, where one forward pass of the model judges several drafted tokens of one row.

    Only tokens that were accepted are looked at: of the recorder's positions (`every_position`) the first ones from the last
    token before the draft on. Drafts that were rejected leave no trace, nor do the passes of an assistant.
    """

    def __init__(self, *arguments: Any, prompt_length: int, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.prompt_length = prompt_length

    def _steps(self, input_ids: Tensor) -> list[Floats]:
        energies = self._recorder.take(None)[0].tolist()
        accepted = input_ids.shape[1] - self.prompt_length - self.n_judged
        whole_prompt = self.n_judged == 0 and len(energies) == self._recorder.n_fed
        start = self.prompt_length - 1 if whole_prompt else 0
        if not 0 < accepted <= len(energies) - start:
            raise GateError(
                f"{accepted} tokens were accepted from logits of {len(energies) - start} positions: the gate cannot tell which "
                "logits to judge; decode without an assistant"
            )
        return [np.array([energy]) for energy in energies[start : start + accepted]]
