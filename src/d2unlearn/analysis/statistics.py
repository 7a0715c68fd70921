"""An index on trial: how well it tells forgotten from retained requests, and what a threshold on it would refuse. Pure.

Evidence is one number a request, higher for forgotten. All statistics depend on its order alone (but for the threshold itself),
so a monotone change of an index changes none of them. Every bootstrap draw takes whole groups of each set, and the same draws
serve all indices: a difference between two indices has an interval of its own, narrower than those of the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from d2unlearn.analysis.records import CurvePoint, Estimate, Placement, Refusals, Separation
from d2unlearn.gate.calibrate import raised
from d2unlearn.stats import conformal_rank, smallest_n

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
STATISTICS = {
    "auroc": "higher",
    "aupr": "higher",
    "fpr_at_95_tpr": "lower",
    "overlap": "lower",
    "ks_distance": "higher",
}
"""What is measured of two sets, and which direction tells them apart better."""
BINS = 20
"""Bins of the overlap, each with as many requests of both sets together."""
PLACEMENTS: tuple[Placement, ...] = get_args(Placement)
RATES = (0.01, 0.05)
"""Shares of false refusals at which thresholds are tried."""


class Draws(NamedTuple):
    """How often each request counts, [D + 1, N]: once in row 0 (the sample itself), as drawn in the D others."""

    counts: Floats


def draw(groups: Sequence[Hashable], n_boot: int, seed: int) -> Draws:
    """Bootstrap draws of a set: as many groups as there are, with replacement. groups: one label a request."""
    labels = np.unique([str(each) for each in groups], return_inverse=True)[1]
    n_groups = int(labels.max()) + 1 if len(labels) else 0
    rng = np.random.default_rng(seed)
    times = np.ones((n_boot + 1, n_groups))
    for row in times[1:]:
        row[:] = np.bincount(rng.integers(0, n_groups, n_groups), minlength=n_groups) if n_groups else 0
    return Draws(times[:, labels] if n_groups else np.zeros((n_boot + 1, 0)))


def statistics(retain: Floats, forget: Floats, retain_draws: Draws, forget_draws: Draws) -> dict[str, Floats]:
    """Each of `STATISTICS` in the sample and in every draw, [D + 1]. NaN evidence is left out; NaN where a side is empty.

    auroc: P(forget > retain), ties half. aupr: average precision of finding forget requests, as if both sets were equally
    large (0.5 for chance). fpr_at_95_tpr: share of retained at or above the highest threshold that catches 95% of forget.
    overlap: common area of the two densities over `BINS` bins of the pooled sample, 1 for equal sets (0.88 expected of two
    equal samples of 400). ks_distance: largest difference of the two distribution functions.
    """
    ordered = _ordered(retain, forget, retain_draws, forget_draws)
    if ordered is None:
        return {name: np.full(len(retain_draws.counts), math.nan) for name in STATISTICS}
    below_r, below_f, edges = ordered
    before_r, before_f = _shifted(below_r), _shifted(below_f)
    with np.errstate(invalid="ignore", divide="ignore"):
        step_f = below_f - before_f
        caught, wrong = 1 - before_f, 1 - before_r
        precision = np.where(caught + wrong > 0, caught / (caught + wrong), 0.0)
        highest = below_f.shape[1] - 1 - np.argmax((caught >= 0.95 - 1e-9)[:, ::-1], axis=1)
        return {
            "auroc": (step_f * (before_r + below_r) / 2).sum(axis=1),
            "aupr": (step_f * precision).sum(axis=1),
            "fpr_at_95_tpr": np.take_along_axis(wrong, highest[:, np.newaxis], axis=1)[:, 0],
            "overlap": np.minimum(_steps(below_r[:, edges]), _steps(below_f[:, edges])).sum(axis=1),
            "ks_distance": np.abs(below_r - below_f).max(axis=1),
        }


def separations(
    evidence: Mapping[str, tuple[Floats, Floats]],
    retain_draws: Draws,
    forget_draws: Draws,
    reference: str,
    names: tuple[str, str],
) -> list[Separation]:
    """Every index on one pair of sets. evidence: by index, (retain, forget); names: of the forget and the retained set."""
    found = {index: statistics(*sides, retain_draws, forget_draws) for index, sides in evidence.items()}
    base = found[reference]["auroc"]
    return [
        Separation(index, *names, {name: estimate(v) for name, v in each.items()}, estimate(each["auroc"] - base))
        for index, each in found.items()
    ]


def estimate(values: Floats, *, share: float = 0.95) -> Estimate:
    """The sample's value with its interval: percentiles of the draws, corrected for bias. values: [D + 1], the sample's first.

    A draw repeats requests, so two drawn sets look farther apart than the sets are; where the sample's value stands among the
    draws says by how much. The interval always holds the value. Source: Efron 1981 (bias-corrected percentiles).
    """
    value, drawn = float(values[0]), values[1:][~np.isnan(values[1:])]
    if math.isnan(value) or not len(drawn):
        return Estimate(value, math.nan, math.nan)
    place = float((drawn < value).mean() + (drawn == value).mean() / 2)
    shift = 2 * ndtri(min(max(place, 0.5 / len(drawn)), 1 - 0.5 / len(drawn)))
    levels = ndtr(shift + ndtri([(1 - share) / 2, (1 + share) / 2]))
    low, high = np.quantile(drawn, levels)
    return Estimate(value, min(float(low), value), max(float(high), value))


def threshold_at(calibration: Floats, rate: float) -> float:
    """The conformal threshold for `rate` false refusals; the largest score where there are too few for it.

    Source: `stats.conformal_rank`.
    """
    scores = np.sort(calibration[~np.isnan(calibration)])
    if not len(scores):
        return math.nan
    enough = len(scores) >= smallest_n(rate)
    return float(scores[conformal_rank(len(scores), rate) - 1 if enough else len(scores) - 1])


def refused_share(evidence: Floats, threshold: float, draws: Draws) -> Floats:
    """Share of requests above the threshold, in the sample and in every draw, [D + 1]. NaN evidence is left out."""
    scored = ~np.isnan(evidence)
    counts = draws.counts[:, scored]
    with np.errstate(invalid="ignore"):
        return np.asarray(counts @ (evidence[scored] > threshold).astype(np.float64) / counts.sum(axis=1))


@dataclass(frozen=True)
class Judged:
    """An index's evidence: on the calibration requests that set thresholds, and on every set that is judged."""

    calibration: Floats
    sets: Mapping[str, Floats]


def refusals(
    evidence: Mapping[str, Judged],
    draws: Mapping[str, Draws],
    reference: str,
    forget: str,
    rates: Sequence[float] = RATES,
) -> list[Refusals]:
    """What each index would refuse of every set at each rate and placement, and how much more than the reference index would.

    forget: the set that thresholds are raised by. Source of the raise: `gate.calibrate.raised`.
    """
    found = []
    for rate, placement in product(rates, PLACEMENTS):
        thresholds = {index: _placed(each, forget, rate, placement) for index, each in evidence.items()}
        shares = {
            index: {name: refused_share(values, thresholds[index], draws[name]) for name, values in each.sets.items()}
            for index, each in evidence.items()
        }
        for index, by_set in shares.items():
            refused = {name: estimate(share) for name, share in by_set.items()}
            more = {name: estimate(share - shares[reference][name]) for name, share in by_set.items()}
            found.append(Refusals(index, rate, thresholds[index], refused, more, placement))
    return found


def _placed(judged: Judged, forget: str, rate: float, placement: Placement) -> float:
    conformal = threshold_at(judged.calibration, rate)
    if placement == "conformal" or math.isnan(conformal):
        return conformal
    calibration, known = (values[~np.isnan(values)] for values in (judged.calibration, judged.sets[forget]))
    return raised(conformal, calibration, known)


Judge = Callable[[Indices, Indices], tuple[Floats, Floats, Floats]]
"""(rows to fit on, rows that set the threshold) -> evidence on (the latter, the retained test set, the forget test set)."""


def calibration_curve(
    index: str, judge: Judge, n_rows: int, sizes: Sequence[int], *, fitted: bool, n_draws: int, seed: int
) -> list[CurvePoint]:
    """False refusals and misses of thresholds set on n of the calibration rows, drawn at random without replacement.

    At each of `RATES`. fitted: half of the n rows are for fitting. `guaranteed` says whether the rows left for the threshold
    suffice for the rate.
    """
    rng = np.random.default_rng(seed)
    points = []
    for n in (size for size in sizes if size <= n_rows):
        n_fit = n // 2 if fitted else 0
        orders = [rng.permutation(n_rows)[:n] for _ in range(n_draws)]
        judged = [judge(chosen[:n_fit], chosen[n_fit:]) for chosen in orders]
        for rate in RATES:
            thresholds = [threshold_at(calibration, rate) for calibration, _, _ in judged]
            wrong = [(retain > t).mean() for t, (_, retain, _) in zip(thresholds, judged, strict=True)]
            missed = [(forget <= t).mean() for t, (_, _, forget) in zip(thresholds, judged, strict=True)]
            points.append(CurvePoint(index, rate, n, n - n_fit >= smallest_n(rate), _middle(wrong), _middle(missed)))
    return points


def _middle(shares: Sequence[float]) -> Estimate:
    """The mean, and where 80% of the draws lie."""
    low, high = np.quantile(shares, [0.1, 0.9])
    return Estimate(float(np.mean(shares)), float(low), float(high))


def _ordered(retain: Floats, forget: Floats, retain_draws: Draws, forget_draws: Draws) -> tuple[Floats, Floats, Indices] | None:
    """Both distribution functions at each distinct value of the pooled evidence, in order, [D + 1, U] each; and the places in
    0..U-1 where bins end that hold as many requests of both sets together, as far as equal values allow.
    """
    keep_r, keep_f = ~np.isnan(retain), ~np.isnan(forget)
    values = np.concatenate([retain[keep_r], forget[keep_f]])
    if not keep_r.any() or not keep_f.any():
        return None
    order = np.argsort(values, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(values[order]) > 0), len(values) - 1)
    from_retain = order < keep_r.sum()
    counts = np.concatenate([retain_draws.counts[:, keep_r], forget_draws.counts[:, keep_f]], axis=1)[:, order]
    sides = [np.cumsum(counts * side, axis=1) for side in (from_retain, ~from_retain)]
    with np.errstate(invalid="ignore"):
        below_r, below_f = (side[:, ends] / side[:, -1:] for side in sides)
    wanted = np.arange(1, BINS + 1) * len(values) / BINS
    return below_r, below_f, np.unique(np.searchsorted(ends + 1, wanted - 1e-9))


def _shifted(below: Floats) -> Floats:
    """The distribution function just below each value: what it was at the value before, 0 at first."""
    return np.concatenate([np.zeros((len(below), 1)), below[:, :-1]], axis=1)


def _steps(below: Floats) -> Floats:
    return below - _shifted(below)
