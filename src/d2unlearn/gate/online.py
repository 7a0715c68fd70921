"""The gate while answers are made: energies in, decisions out. Pure.

Rows advance together, one position at a time. Position 0 is the last prompt position; the logits of position t choose token t.
A decision is a function of a row's own energies alone, whoever reads them and however tokens are chosen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from d2unlearn.gate.score import Bools, Indices, RunningScore, Score
from d2unlearn.stats import Floats


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


@dataclass(frozen=True)
class Trace:
    """One generated answer. `energies[t]` (nats) is the free energy of the logits that token `token_ids[t]` was chosen from.

    Both have the same length, at least 1; the end token, when there is one, is the last.
    """

    energies: tuple[float, ...]
    token_ids: tuple[int, ...]

    @property
    def prompt_energy(self) -> float:
        """Free energy at the last prompt position."""
        return self.energies[0]


class OnlineGate:
    """The decisions on B answers. `score` None: notes energies, refuses nothing.

    `others`: the highest score of what else was looked at of each request (its turns by themselves), [B], or [b] where B / b
    rows in turn are of one request; a row starts with it, and the highest counts. None: nothing else was. `leads`: what is
    added to a row's score before it is compared (see `guarantees`), [B] or [b] alike; None: nothing.
    `energies`: of each position so far [B], as they were taken. `refused`: [B]. `lengths`: [B], tokens of an answer up to its
    end or to the one that was chosen when it was refused; -1 while it goes on.
    """

    def __init__(
        self,
        score: Score | None,
        threshold: float,
        n_rows: int,
        others: Floats | None = None,
        leads: Floats | None = None,
    ) -> None:
        self.energies: list[Floats] = []
        self.refused: Bools = np.zeros(n_rows, dtype=np.bool_)
        self.lengths: Indices = np.full(n_rows, -1, dtype=np.int64)
        self._threshold = threshold
        self._leads = np.zeros(n_rows) if leads is None else np.repeat(leads, n_rows // len(leads))
        self._lookahead = 1 if score is None else score.lookahead
        self._running = None if score is None else RunningScore(score, n_rows)
        if self._running is not None and others is not None:
            self._running.best = np.repeat(others, n_rows // len(others))

    def update(self, energies: Floats, ended: Bools | None = None) -> None:
        """Take the next position's energies [B], and say which answers end with the token chosen there (None: none does)."""
        self.energies.append(energies)
        if self._running is not None:
            above = self._running.update(energies, ended) + self._leads > self._threshold
            if above.any():
                self.refused |= above & (self.lengths < 0)
                self._running.stop(self.refused)
        finished = self.refused if ended is None else self.refused | ended
        self.lengths[finished & (self.lengths < 0)] = len(self.energies)

    def finish(self) -> None:
        """End the answers that still go on: they have reached the length limit."""
        going = self.lengths < 0
        if self._running is not None:
            self.refused |= going & (self._running.finish() + self._leads > self._threshold)
        self.lengths[going] = len(self.energies)

    def refused_if_ended(self) -> Bools:
        """[B]: `refused`, if every answer that goes on ended at the position taken last. Changes nothing."""
        if self._running is None:
            return self.refused
        return np.asarray(self.refused | (self._running.if_ended() + self._leads > self._threshold))

    def reorder(self, rows: Indices) -> None:
        """Go on with these answers in these places, [B]: one may be left out, or go on as several (beams)."""
        self.refused, self.lengths, self._leads = self.refused[rows], self.lengths[rows], self._leads[rows]
        if self._running is not None:
            self._running.reorder(rows)

    def showable(self, hold_back: int = 0) -> int:
        """How many tokens of an answer that goes on a stream may show: none until the early looks have passed.

        So of an answer that is refused at its token n nothing was shown when n is within the score's `lookahead`, else at most
        the n - 1 - `hold_back` tokens before.
        """
        passed = len(self.energies)
        return max(passed - hold_back, 0) if passed >= self._lookahead else 0

    def decisions(self) -> list[Decision]:
        """One for each row, in order."""
        n_rows = len(self.refused)
        scores = [None] * n_rows if self._running is None else (self._running.best + self._leads).tolist()
        threshold = None if self._running is None else self._threshold
        lengths = (self.lengths - self.refused).tolist()
        rows = zip(self.refused.tolist(), self.energies[0].tolist(), scores, lengths, strict=True)
        return [Decision(refused, energy, score, threshold, length) for refused, energy, score, length in rows]

    def traces(self, tokens: Sequence[Sequence[int]]) -> list[Trace]:
        """Each row's energies with its tokens, up to its end. tokens: [B, T], T at least the longest answer's length."""
        columns = np.stack(self.energies, axis=1).tolist()
        rows = zip(columns, tokens, self.lengths.tolist(), strict=True)
        return [Trace(tuple(energies[:length]), tuple(answer[:length])) for energies, answer, length in rows]


def decide(
    score: Score | None, threshold: float, energies: Sequence[float], other: float = -math.inf, lead: float = 0.0
) -> Decision:
    """The decision on one whole answer, from its energies position by position. other, lead: as those of `OnlineGate`."""
    gate = OnlineGate(score, threshold, 1, np.array([other]), np.array([lead]))
    for energy in energies:
        gate.update(np.array([energy]))
    gate.finish()
    return gate.decisions()[0]
