"""Thresholds on a detector's scores, from calibration alone or raised as the gate raises its own, and what they refuse. Pure.

A request is refused whose score is above the threshold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from d2unlearn.analysis.records import CurvePoint, Estimate, Placement, Refusals
from d2unlearn.analysis.roc import BootstrapWeights, estimate
from d2unlearn.gate.calibrate import raised
from d2unlearn.stats import Floats, conformal_rank, finite, smallest_n

PLACEMENTS: tuple[Placement, ...] = get_args(Placement)
REFUSAL_RATES = (0.01, 0.05)
"""Shares of false refusals at which thresholds are tried."""


@dataclass(frozen=True)
class DetectorScores:
    """A detector's scores: of the calibration requests that set thresholds, and of every set that is judged."""

    calibration: Floats
    sets: Mapping[str, Floats]


def threshold_at(calibration: Floats, rate: float) -> float:
    """The conformal threshold for `rate` false refusals; the largest score where there are too few for it.

    Source: `stats.conformal_rank`.
    """
    scores = np.sort(finite(calibration))
    if not len(scores):
        return math.nan
    return float(scores[conformal_rank(len(scores), rate) - 1 if len(scores) >= smallest_n(rate) else -1])


def refused_share(scores: Floats, threshold: float, weights: BootstrapWeights) -> Floats:
    """Share of requests above the threshold, in the sample and in every draw, [D + 1]. NaN scores are left out."""
    scored = ~np.isnan(scores)
    counts = weights.counts[:, scored]
    with np.errstate(invalid="ignore"):
        return np.asarray(counts @ (scores[scored] > threshold).astype(np.float64) / counts.sum(axis=1))


def refusals(
    scores: Mapping[str, DetectorScores], weights: Mapping[str, BootstrapWeights], base: str, forget: str
) -> list[Refusals]:
    """What each detector would refuse of every set at each rate and placement, and how much more than the detector `base`.

    forget: the set that thresholds are raised by. Source of the raise: `gate.calibrate.raised`.
    """
    results = []
    for rate, placement in product(REFUSAL_RATES, PLACEMENTS):
        thresholds = {detector: _placed(scored, forget, rate, placement) for detector, scored in scores.items()}
        shares = {
            detector: {name: refused_share(values, thresholds[detector], weights[name]) for name, values in scored.sets.items()}
            for detector, scored in scores.items()
        }
        for detector, by_set in shares.items():
            refused = {name: estimate(share) for name, share in by_set.items()}
            more = {name: estimate(share - shares[base][name]) for name, share in by_set.items()}
            results.append(Refusals(detector, rate, thresholds[detector], refused, more, placement))
    return results


def _placed(scores: DetectorScores, forget: str, rate: float, placement: Placement) -> float:
    conformal = threshold_at(scores.calibration, rate)
    if placement == "conformal" or math.isnan(conformal):
        return conformal
    return raised(conformal, finite(scores.calibration), finite(scores.sets[forget]))


Rescore = Callable[[NDArray[np.intp], NDArray[np.intp]], tuple[Floats, Floats, Floats]]
"""(rows to fit on, rows that set the threshold) -> scores of (the latter, the retained test set, the forget test set)."""


def calibration_curve(
    detector: str, rescore: Rescore, n_rows: int, sizes: Sequence[int], *, fitted: bool, n_draws: int, seed: int
) -> list[CurvePoint]:
    """False refusals and misses of thresholds set on n of the calibration rows, drawn at random without replacement.

    At each of `REFUSAL_RATES`. fitted: half of the n rows are for fitting. `guaranteed` says whether the rows left for the
    threshold suffice for the rate.
    """
    rng = np.random.default_rng(seed)
    points = []
    for n in (size for size in sizes if size <= n_rows):
        n_fit = n // 2 if fitted else 0
        orders = [rng.permutation(n_rows)[:n] for _ in range(n_draws)]
        scored = [rescore(rows[:n_fit], rows[n_fit:]) for rows in orders]
        for rate in REFUSAL_RATES:
            thresholds = [threshold_at(calibration, rate) for calibration, _, _ in scored]
            wrong = [(retain > t).mean() for t, (_, retain, _) in zip(thresholds, scored, strict=True)]
            missed = [(forget <= t).mean() for t, (_, _, forget) in zip(thresholds, scored, strict=True)]
            points.append(CurvePoint(detector, rate, n, n - n_fit >= smallest_n(rate), _middle(wrong), _middle(missed)))
    return points


def _middle(shares: Sequence[float]) -> Estimate:
    """The mean, and where 80% of the draws lie."""
    low, high = np.quantile(shares, [0.1, 0.9])
    return Estimate(float(np.mean(shares)), float(low), float(high))
