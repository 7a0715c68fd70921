"""Whether today's traffic still scores as what the gate was calibrated on: a test with a false-alarm rate. Pure; keeps no text.

Two halves. A conformal test martingale finds scores that shift. Every score is ranked among the calibration scores and the
scores of the window so far, ties broken at random:

    p_t = (number above s_t + U_t (number equal to s_t, itself included)) / (number of all),    U_t uniform

While traffic and calibration are exchangeable, p_1, p_2, ... are independent and uniform. Against that the simple jumper bets:
capital C_e on each e in {-1, 0, 1}, of which at every step a share J goes to equal parts, then

    C_e <- C_e (1 + e (p_t - 1/2)),    M_t = C_-1 + C_0 + C_1,    M_0 = 1

Low p, scores above the usual, feed e = -1, high ones e = 1. A likelihood ratio finds a few refused requests among many. Of c
calibration scores k were above the threshold, and of t in the window j; with the Krichevsky-Trofimov mixture
kt(j, t) = B(j + 1/2, t - j + 1/2) / B(1/2, 1/2)

    R_t = kt(k, c) kt(j, t) / sup_q q^(k + j) (1 - q)^(c + t - k - j)

is at most the ratio to the likelihood of the true share q, which is a martingale of mean 1. So by Ville's inequality, and since
M and R are each given half of it, the chance that max(M, R) / 2 ever reaches 1 / a in a window is at most a: that is the alarm,
and its false-alarm rate (over calibrations and traffic). After `DRIFT_WINDOW` scores, and after an alarm, a new window begins
from the calibration scores alone: memory is bounded, and a drift that came slowly is not taken for usual.

A refused request is not carried on to its highest score, so all scores are cut at the threshold, those of calibration too.

Source: Vovk, Petej, Nouretdinov, Ahlberg, Carlsson, Gammerman 2021, "Retrain or not retrain: conformal test martingales for
change-point detection", algorithm 1; Wasserman, Ramdas, Balakrishnan 2020, "Universal inference"; Ville 1939.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Sequence
from random import Random

DRIFT_WINDOW = 10_000
"""Scores of a window: the false-alarm rate is that of each."""
FALSE_ALARMS = 0.01
"""At most so many windows without drift end in an alarm."""
JUMP = 0.01
"""J, as in the source."""
RECENT = 1000
"""Scores of the sliding histogram."""


class DriftWatch:
    """Fed with one score after the other. calibration: the scores behind the threshold, at least one."""

    def __init__(
        self, calibration: Sequence[float], threshold: float, *, window: int = DRIFT_WINDOW, false_alarms: float = FALSE_ALARMS
    ) -> None:
        self._calibration = sorted(min(score, threshold) for score in calibration)
        self._threshold = threshold
        self._window = window
        self._bar = 1 / false_alarms
        self._random = Random(0)
        self._above = sum(score > threshold for score in calibration)
        self.recent: deque[float] = deque(maxlen=RECENT)
        self.alarms = 0
        self._begin()

    @property
    def martingale(self) -> float:
        """M: 1 at the beginning of a window."""
        return sum(self._capital)

    @property
    def refused_ratio(self) -> float:
        """R: at most 1 at the beginning of a window."""
        n_before, n_now = len(self._calibration), len(self._ranked) - len(self._calibration)
        above, n = self._above + self._refused, n_before + n_now
        most = sum(count * math.log(count / n) for count in (above, n - above) if count)
        return math.exp(min(_log_mixture(self._above, n_before) + _log_mixture(self._refused, n_now) - most, 700.0))

    @property
    def evidence(self) -> float:
        """max(M, R) / 2: an alarm where it reaches 1 / `false_alarms`. Their histories differ, so no mean of them would do."""
        return max(self.martingale, self.refused_ratio) / 2

    def note(self, score: float) -> bool:
        """Take a request's score; whether it raises the alarm. What is no number is left out."""
        if math.isnan(score):
            return False
        if len(self._ranked) - len(self._calibration) >= self._window:
            self._begin()
        cut = min(score, self._threshold)
        self.recent.append(score)
        self._bet(self._p_value(cut))
        self._refused += score > self._threshold
        if self.evidence < self._bar:
            return False
        self.alarms += 1
        self._begin()
        return True

    def shares_up_to(self, edges: Sequence[float]) -> list[float]:
        """Of the latest scores, the share at or below each edge; NaN before the first."""
        if not self.recent:
            return [math.nan] * len(edges)
        ordered = sorted(self.recent)
        return [bisect_right(ordered, edge) / len(ordered) for edge in edges]

    def _begin(self) -> None:
        self._ranked = list(self._calibration)
        self._capital = [1 / 3, 1 / 3, 1 / 3]
        self._refused = 0

    def _p_value(self, score: float) -> float:
        insort(self._ranked, score)
        first, after = bisect_left(self._ranked, score), bisect_right(self._ranked, score)
        return (len(self._ranked) - after + self._random.random() * (after - first)) / len(self._ranked)

    def _bet(self, p: float) -> None:
        shared = JUMP * self.martingale / 3
        jumped = [(1 - JUMP) * own + shared for own in self._capital]
        self._capital = [own * (1 + bet * (p - 0.5)) for own, bet in zip(jumped, (-1, 0, 1), strict=True)]


def _log_mixture(count: int, n: int) -> float:
    """Of `count` in n, in one order: the logarithm of the Krichevsky-Trofimov mixture's probability."""
    beta = math.lgamma(count + 0.5) + math.lgamma(n - count + 0.5) - math.lgamma(n + 1)
    return beta - 2 * math.lgamma(0.5)
