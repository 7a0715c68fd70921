"""The gate at work inside `transformers.generate`: decides row by row while tokens are chosen, and keeps a stream back.

The decision sits in a stopping criterion, not in a logits processor: it needs no copy of the logits, no end token, and
nothing that comes after it (warpers, bans, penalties) can undo it. It is a function of the positions' energies alone. The
one token that was chosen when a row is refused never leaves: the refusal takes the place of the row's whole answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from d2unlearn.gate import EnergyGate
from d2unlearn.gate.score import Bools, Floats, RunningScore
from d2unlearn.gate.traces import EnergyRecorder


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
    """Scores each row after each chosen token and stops those that are refused.

    `gate` None: notes the prompt's energies, refuses nothing. `ends`: ids that end an answer. `criteria`: the caller's own
    stopping criteria, asked here so that a row which they stop is looked at for the last time.
    """

    def __init__(
        self,
        gate: EnergyGate | None,
        recorder: EnergyRecorder,
        ends: Sequence[int],
        *,
        criteria: StoppingCriteriaList | None = None,
    ) -> None:
        self._gate = gate
        self._recorder = recorder
        self._threshold = math.inf if gate is None else gate.threshold
        self._ends = frozenset(ends)
        self._criteria = criteria
        self._running: RunningScore | None = None
        self._none: Tensor | None = None
        self.prompt_length = 0
        self.energies = np.zeros(0)
        self.refused = np.zeros(0, dtype=np.bool_)
        self.lengths = np.zeros(0, dtype=np.int64)

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
        """input_ids: [B, T + 1], the new token last. Returns bool [B]: the rows that are finished."""
        energies = np.array(self._recorder.latest.tolist())
        if self._none is None:
            self._begin(energies, input_ids)
        stopped = None if self._criteria is None else self._criteria(input_ids, scores, **options)
        ended = self._ended(input_ids, stopped)
        finished = ended
        if self._running is not None:
            best = self._running.update(energies, ended)
            if best.max() > self._threshold:
                refused = (self.lengths < 0) & (best > self._threshold)
                self.refused |= refused
                self._running.stop(refused)
                finished = self.refused if ended is None else self.refused | ended
        if finished is not None:
            self.lengths[(self.lengths < 0) & finished] = input_ids.shape[1] - self.prompt_length
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

    def _begin(self, energies: Floats, input_ids: Tensor) -> None:
        n_rows = len(energies)
        self.energies = energies
        self.prompt_length = input_ids.shape[1] - 1
        self.refused = np.zeros(n_rows, dtype=np.bool_)
        self.lengths = np.full(n_rows, -1, dtype=np.int64)
        self._running = None if self._gate is None else RunningScore(self._gate.score, n_rows)
        self._none = torch.zeros(n_rows, dtype=torch.bool, device=input_ids.device)

    def _ended(self, input_ids: Tensor, stopped: Tensor | None) -> Bools | None:
        """Rows whose answer ends with the new token, by an end token or the caller's criteria; None for none."""
        ended = [token in self._ends for token in input_ids[:, -1].tolist()]
        if stopped is not None:
            ended = [one or other for one, other in zip(ended, stopped.tolist(), strict=True)]
        return np.array(ended) if any(ended) else None

    def _finished(self, stopped: Tensor | None) -> Tensor:
        assert self._none is not None
        done = torch.from_numpy(self.refused.copy()).to(self._none.device) if self.refused.any() else self._none
        return done if stopped is None else done | stopped


class HeldBackStreamer(BaseStreamer):
    """Hands a single row's tokens on to another streamer, late enough that an early refusal leaks nothing.

    The first `held_back` tokens are kept until as many were chosen and the looks at them have passed; then each is handed on
    once the look at it has passed. When the row is refused, what is still kept is dropped and the refusal's tokens follow.
    `refusal` takes the prompt's ids and whether tokens were handed on before (a late refusal starts on a new line).
    """

    def __init__(self, inner: Any, watch: Watch, held_back: int, refusal: Callable[[list[int], bool], list[int]]) -> None:
        self._inner = inner
        self._watch = watch
        self._held_back = held_back
        self._refusal = refusal
        self._prompt: Tensor | None = None
        self._kept: list[Tensor] = []
        self._n_tokens = 0

    def put(self, value: Tensor) -> None:
        """The prompt first, then one token at a time; called after `Watch` has decided on the token."""
        if self._prompt is None:
            self._prompt = value
            self._inner.put(value)
            return
        self._kept.append(value)
        self._n_tokens += 1
        if self._n_tokens >= self._held_back and not self._watch.refused.any():
            self._release()

    def end(self) -> None:
        """The answer is over: the last look, then what is kept or the refusal."""
        self._watch.finish(self._n_tokens)
        if self._watch.refused.any() and self._prompt is not None:
            late = len(self._kept) < self._n_tokens
            for token in self._refusal(self._prompt.reshape(-1).tolist(), late):
                self._inner.put(torch.tensor([token]))
        else:
            self._release()
        self._inner.end()

    def _release(self) -> None:
        for value in self._kept:
            self._inner.put(value)
        self._kept.clear()
