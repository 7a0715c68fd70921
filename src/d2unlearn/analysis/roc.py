"""ROC analysis under bootstrap weights: how well a detector's scores tell forgotten from retained requests. Pure.

A score is one number a request, higher for forgotten. All statistics depend on the scores' order alone, so a monotone change of
a detector changes none of them. Every draw takes whole groups of each set, and the same draws serve all detectors: a difference
between two detectors has an interval of its own, narrower than those of the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri

from d2unlearn.analysis.records import Direction, Estimate, Separation
from d2unlearn.stats import Floats

OVERLAP_BINS = 20
"""Bins of the overlap, each with as many requests of both sets together."""


@dataclass(frozen=True)
class BootstrapWeights:
    """How often each request counts, [D + 1, N]: once in row 0 (the sample itself), as drawn in the D others."""

    counts: Floats

    @classmethod
    def draw(cls, groups: Sequence[Hashable], n_draws: int, seed: int) -> BootstrapWeights:
        """As many groups as there are, with replacement. groups: one label a request."""
        labels = np.unique([str(group) for group in groups], return_inverse=True)[1]
        n_groups = int(labels.max(initial=-1)) + 1
        rng = np.random.default_rng(seed)
        drawn = [np.bincount(rng.integers(0, n_groups, n_groups), minlength=n_groups) for _ in range(n_draws) if n_groups]
        counts = np.ones((n_draws + 1, n_groups))
        counts[1:] = np.reshape(drawn, (n_draws, n_groups))
        return cls(counts[:, labels])


@dataclass(frozen=True)
class Roc:
    """Shares below each threshold: of retained requests (`tnr`, true negatives), of forgotten ones (`fnr`), [D + 1, U + 1].

    The thresholds rise: the U distinct scores of both sets (at first 0 and 0), then one above every score (1 and 1). `pooled`:
    how many requests of both sets lie below, each counted once, [U + 1].
    """

    tnr: Floats
    fnr: Floats
    pooled: Floats

    @property
    def fpr(self) -> Floats:
        """Share of retained requests at or above each threshold."""
        return 1 - self.tnr

    @property
    def tpr(self) -> Floats:
        """Share of forgotten requests at or above each threshold."""
        return 1 - self.fnr


def weighted_roc(retain: Floats, forget: Floats, retain_weights: BootstrapWeights, forget_weights: BootstrapWeights) -> Roc:
    """The curve of the sample and of every draw. NaN scores are left out; shares of a side without a score are NaN."""
    sides = [
        (scores[~np.isnan(scores)], weights.counts[:, ~np.isnan(scores)])
        for scores, weights in ((retain, retain_weights), (forget, forget_weights))
    ]
    both = np.concatenate([scores for scores, _ in sides])
    thresholds = np.append(np.unique(both), math.nan)  # which sorts above infinity
    (tn, fn), (pooled,) = (_below(thresholds, *side) for side in sides), _below(thresholds, both, np.ones((1, len(both))))
    with np.errstate(invalid="ignore"):
        return Roc(tn / tn[:, -1:], fn / fn[:, -1:], pooled)


def _below(thresholds: Floats, scores: Floats, counts: Floats) -> Floats:
    """How many of the scores, counted so, lie below each threshold: [N] and [D + 1, N] -> [D + 1, U + 1]."""
    order = np.argsort(scores)
    below = np.insert(np.cumsum(counts[:, order], axis=1), 0, 0.0, axis=1)
    return below[:, np.searchsorted(scores[order], thresholds)]


def _auroc(roc: Roc) -> Floats:
    """P(forget > retain), ties half."""
    return np.asarray((np.diff(roc.fnr) * (roc.tnr[:, :-1] + roc.tnr[:, 1:]) / 2).sum(axis=1))


def _aupr(roc: Roc) -> Floats:
    """Average precision of finding forget requests, as if both sets were equally large: 0.5 for chance."""
    caught, wrong = roc.tpr[:, :-1], roc.fpr[:, :-1]
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(caught + wrong > 0, caught / (caught + wrong), 0.0)
    return np.asarray((np.diff(roc.fnr) * precision).sum(axis=1))


def _fpr_at_95_tpr(roc: Roc) -> Floats:
    """Share of retained at or above the highest threshold that catches 95% of forget."""
    highest = (roc.tpr >= 0.95 - 1e-9).sum(axis=1) - 1
    return np.asarray(roc.fpr[np.arange(len(highest)), highest])


def _overlap(roc: Roc) -> Floats:
    """Common area of the two densities over `OVERLAP_BINS` bins of the pooled sample, as far as equal scores allow.

    1 for equal sets (0.88 expected of two equal samples of 400).
    """
    ends = np.unique(np.searchsorted(roc.pooled, np.linspace(0, roc.pooled[-1], OVERLAP_BINS + 1) - 1e-9))
    return np.asarray(np.minimum(np.diff(roc.tnr[:, ends]), np.diff(roc.fnr[:, ends])).sum(axis=1))


def _ks_distance(roc: Roc) -> Floats:
    """Largest difference of the two distribution functions."""
    return np.asarray(np.abs(roc.tnr - roc.fnr).max(axis=1))


class RocStatistic(NamedTuple):
    """What is measured of two sets, and which direction tells them apart better. of: [D + 1] of a curve."""

    label: str
    better: Direction
    of: Callable[[Roc], Floats]


ROC_STATISTICS: Mapping[str, RocStatistic] = {
    "auroc": RocStatistic("AUROC", "higher", _auroc),
    "aupr": RocStatistic("AUPR", "higher", _aupr),
    "fpr_at_95_tpr": RocStatistic("FPR at 95% TPR", "lower", _fpr_at_95_tpr),
    "overlap": RocStatistic("Overlap", "lower", _overlap),
    "ks_distance": RocStatistic("KS distance", "higher", _ks_distance),
}


def roc_statistics(
    retain: Floats, forget: Floats, retain_weights: BootstrapWeights, forget_weights: BootstrapWeights
) -> dict[str, Floats]:
    """Each of `ROC_STATISTICS` in the sample and in every draw, [D + 1]. NaN where a side has no score."""
    if np.isnan(retain).all() or np.isnan(forget).all():
        return {name: np.full(len(retain_weights.counts), math.nan) for name in ROC_STATISTICS}
    roc = weighted_roc(retain, forget, retain_weights, forget_weights)
    return {name: statistic.of(roc) for name, statistic in ROC_STATISTICS.items()}


def pair_separations(
    scores: Mapping[str, tuple[Floats, Floats]],
    retain_weights: BootstrapWeights,
    forget_weights: BootstrapWeights,
    base: str,
    names: tuple[str, str],
) -> list[Separation]:
    """Every detector on one pair of sets, beside the detector `base`.

    scores: by detector, (retain, forget); names: of the forget and the retained set.
    """
    measured = {detector: roc_statistics(*sides, retain_weights, forget_weights) for detector, sides in scores.items()}
    base_auroc = measured[base]["auroc"]
    return [
        Separation(detector, *names, {name: estimate(v) for name, v in values.items()}, estimate(values["auroc"] - base_auroc))
        for detector, values in measured.items()
    ]


def estimate(values: Floats, *, share: float = 0.95) -> Estimate:
    """The sample's value with its interval: percentiles of the draws, corrected for bias. values: [D + 1], the sample's first.

    A draw repeats requests, so two drawn sets look farther apart than the sets are; where the sample's value stands among the
    draws says by how much. The interval always holds the value. Source: Efron 1981 (bias-corrected percentiles).
    """
    value, drawn = float(values[0]), values[1:][~np.isnan(values[1:])]
    if math.isnan(value) or not len(drawn):
        return Estimate(value, math.nan, math.nan)
    rank = float((drawn < value).mean() + (drawn == value).mean() / 2)
    shift = 2 * ndtri(min(max(rank, 0.5 / len(drawn)), 1 - 0.5 / len(drawn)))
    levels = ndtr(shift + ndtri([(1 - share) / 2, (1 + share) / 2]))
    low, high = np.quantile(drawn, levels)
    return Estimate(value, min(float(low), value), max(float(high), value))
