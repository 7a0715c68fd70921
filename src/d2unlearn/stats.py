"""Intervals, rank statistics and conformal ranks. numpy and scipy only.

Convention of the rank statistics: `positives` should score higher than `negatives`. Energies of forget content are the
positives, those of retained content the negatives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta, binomtest, hmean
from scipy.stats import t as student

from d2unlearn.errors import GateError
from d2unlearn.schema import Interval

Floats = NDArray[np.float64]
TINY = 1e-12
"""A deviation, or a mean, that is nothing but rounding."""


def finite(values: ArrayLike) -> Floats:
    """The values that are not NaN, as a float64 vector."""
    array = np.asarray(values, dtype=np.float64).ravel()
    return array[~np.isnan(array)]


def bootstrap_interval(
    values: ArrayLike,
    *,
    groups: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    n_boot: int = 1000,
    seed: int = 0,
) -> Interval:
    """Mean with a percentile bootstrap interval; with `groups`, whole groups are drawn (clustered data).

    NaN values are left out and not counted. All NaN when nothing is left; the interval is the value when one value is left.
    """
    array = np.asarray(values, dtype=np.float64).ravel()
    keep = ~np.isnan(array)
    if not keep.any():
        return Interval(math.nan, math.nan, math.nan, 0)
    labels = np.arange(len(array)) if groups is None else np.unique([str(g) for g in groups], return_inverse=True)[1]
    _, index = np.unique(labels[keep], return_inverse=True)
    sums = np.bincount(index, weights=array[keep])
    counts = np.bincount(index).astype(np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(sums), size=(n_boot, len(sums)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(array[keep].mean()), float(low), float(high), int(keep.sum()))


def bootstrap_bounds(
    statistic: Callable[[Sequence[Floats]], float],
    columns: Sequence[tuple[str, ArrayLike]],
    groups: Mapping[str, Sequence[Hashable]],
    *,
    confidence: float = 0.95,
    n_boot: int = 300,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of several columns. columns: (name of the set, one value an example).

    Each draw takes whole groups of each set (`groups`: a label an example), the same examples in all columns of that set.
    NaN values stay where they are: the statistic deals with them. NaN when no draw gives a number.
    """
    (bounds,) = several_bounds([statistic], columns, groups, confidence=confidence, n_boot=n_boot, seed=seed)
    return bounds


def several_bounds(
    statistics: Sequence[Callable[[Sequence[Floats]], float]],
    columns: Sequence[tuple[str, ArrayLike]],
    groups: Mapping[str, Sequence[Hashable]],
    *,
    confidence: float = 0.95,
    n_boot: int = 300,
    seed: int = 0,
) -> list[tuple[float, float]]:
    """`bootstrap_bounds` of each statistic, all of the same draws."""
    rng = np.random.default_rng(seed)
    members = {name: _Members.of(groups[name]) for name, _ in columns if len(groups[name])}
    arrays = [(name, np.asarray(values, dtype=np.float64)) for name, values in columns]
    drawn = np.empty((len(statistics), n_boot))
    for number in range(n_boot):
        chosen = {name: each.drawn(rng) for name, each in members.items()}
        taken = [values[chosen[name]] if name in chosen else values for name, values in arrays]
        drawn[:, number] = [statistic(taken) for statistic in statistics]
    return [_percentiles(finite(of_statistic), confidence) for of_statistic in drawn]


def _percentiles(values: Floats, confidence: float) -> tuple[float, float]:
    if not len(values):
        return math.nan, math.nan
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


class _Members(NamedTuple):
    """The indices of all groups' examples, one group behind the other; where each group starts in them, and its size."""

    indices: NDArray[np.intp]
    starts: NDArray[np.intp]
    sizes: NDArray[np.intp]

    @classmethod
    def of(cls, labels: Sequence[Hashable]) -> _Members:
        found: dict[Hashable, list[int]] = {}
        for index, label in enumerate(labels):
            found.setdefault(label, []).append(index)
        sizes = np.array([len(indices) for indices in found.values()], dtype=np.intp)
        return cls(np.concatenate([np.array(each, dtype=np.intp) for each in found.values()]), sizes.cumsum() - sizes, sizes)

    def drawn(self, rng: np.random.Generator) -> NDArray[np.intp]:
        """The examples of as many groups as there are, drawn with replacement."""
        which = rng.integers(0, len(self.sizes), len(self.sizes))
        sizes = self.sizes[which]
        before = sizes.cumsum() - sizes
        found: NDArray[np.intp] = self.indices[np.repeat(self.starts[which] - before, sizes) + np.arange(sizes.sum())]
        return found


class MeanTest(NamedTuple):
    """A mean, and the two-sided p-value of its being zero.

    `p`: NaN for one repeat of one group, which leaves nothing to judge chance by; 0 or 1 where nothing varies.
    """

    mean: float
    p: float


def crossed_test(values: ArrayLike, groups: Sequence[Hashable]) -> MeanTest:
    """Whether the mean of values [repeats, examples] differs from zero where repeats and groups of examples are both chance.

    `groups`: a label an example. Say, trainings with other seeds are the repeats and authors the groups: the result speaks of
    other trainings and other authors too. With the mean squares of repeats, of groups and of what neither explains, MS_r, MS_g
    and MS_e, the variance of the mean over R repeats and G groups is (MS_r + MS_g - MS_e) / RG, and never below the larger of
    MS_r / RG and MS_g / RG. p is the mean of Student's with R - 1 and with G - 1 degrees of freedom, weighted by MS_r and MS_g:
    an estimate of the degrees of freedom themselves gives too many at small levels. Groups of different sizes enter by their
    share of the examples. Source: two crossed random effects, Scheffé 1959; the weights after Cochran and Cox 1950.
    """
    array = np.atleast_2d(np.asarray(values, dtype=np.float64))
    _, index = np.unique([str(group) for group in groups], return_inverse=True)
    mean, rows = float(array.mean()), array.mean(axis=1, keepdims=True)
    r, g = len(array), int(index.max()) + 1
    if r == g == 1:
        return MeanTest(mean, math.nan)
    cells = np.stack([np.bincount(index, weights=row) for row in array - rows]) * g / array.shape[1]
    by_group = cells.mean(axis=0)
    of_repeats = g * float(((rows - mean) ** 2).sum()) / max(r - 1, 1)
    of_groups = r * float((by_group**2).sum()) / max(g - 1, 1)
    of_rest = float(((cells - by_group) ** 2).sum()) / max((r - 1) * (g - 1), 1)
    variance = max(of_repeats, of_groups, of_repeats + of_groups - of_rest) / (r * g)
    if variance < TINY**2:
        return MeanTest(mean, float(abs(mean) < TINY))
    t = abs(mean) / math.sqrt(variance)
    tails = [(weight, 2 * float(student.sf(t, n - 1))) for weight, n in ((of_repeats, r), (of_groups, g)) if n > 1]
    return MeanTest(mean, sum(weight * tail for weight, tail in tails) / sum(weight for weight, _ in tails))


def t_tail(mean: float, error: float, degrees: int) -> float:
    """P(T > mean / error) for Student's t with so many degrees of freedom. Without an error 0 above zero, 1 up to it."""
    if error == 0:
        return float(mean <= 0)
    return float(student.sf(mean / error, degrees))


def t_reach(error: float, degrees: int, level: float = 0.05) -> float:
    """How far above a mean its one-sided interval ends, at that level."""
    return error * float(student.ppf(1 - level, degrees)) if error else 0.0


def unseen_share(asked: int, of: int, level: float = 0.05) -> float:
    """The largest share of `of` things that may have a property which none of the `asked`, drawn from them, shows.

    The largest K / of for which C(of - K, asked) / C(of, asked) > level: 0 where all were asked, 1 where none was.
    """
    if asked <= 0:
        return 1.0
    chance, found = 1.0, 0
    while found < of - asked:
        chance *= (of - asked - found) / (of - found)
        if chance <= level:
            break
        found += 1
    return found / of


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for being so many: rejecting those below a level errs at all at most that often.

    Source: Holm 1979.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order, adjusted = np.argsort(p, kind="stable"), np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(np.minimum(1.0, np.arange(len(p), 0, -1) * p[order]))
    return [float(value) for value in adjusted]


def binomial_interval(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """A share with its exact (Clopper-Pearson) interval. All NaN for n = 0."""
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    exact = binomtest(successes, n).proportion_ci(confidence, method="exact")
    return Interval(successes / n, float(exact.low), float(exact.high), n)


def auroc(negatives: ArrayLike, positives: ArrayLike) -> float:
    """P(positive > negative), ties counted half. NaN when either side is empty."""
    low, high = finite(negatives), finite(positives)
    if not len(low) or not len(high):
        return math.nan
    low = np.sort(low)
    twice = np.searchsorted(low, high, side="left").sum() + np.searchsorted(low, high, side="right").sum()
    return float(twice / (2 * len(low) * len(high)))


def fpr_at_tpr(negatives: ArrayLike, positives: ArrayLike, tpr: float = 0.95) -> float:
    """Share of negatives at or above the highest threshold that keeps `tpr` of the positives. NaN when a side is empty."""
    low, high = finite(negatives), np.sort(finite(positives))[::-1]
    if not len(low) or not len(high):
        return math.nan
    threshold = high[math.ceil(tpr * len(high) - 1e-9) - 1]
    return float((low >= threshold).mean())


def ks_distance(first: ArrayLike, second: ArrayLike) -> float:
    """Kolmogorov-Smirnov distance between two samples, 0 to 1. NaN when either is empty."""
    a, b = finite(first), finite(second)
    if not len(a) or not len(b):
        return math.nan
    steps = np.concatenate([a, b])
    shares = [np.searchsorted(np.sort(side), steps, side="right") / len(side) for side in (a, b)]
    return float(np.abs(shares[0] - shares[1]).max())


def harmonic_mean(values: Sequence[float]) -> float:
    """Harmonic mean of values in [0, 1]: zero if any is zero, NaN if any is NaN or there is none."""
    return float(hmean(values)) if len(values) else math.nan


def conformal_rank(n: int, alpha: float, confidence: float | None = None) -> int:
    """The rank (1 = smallest of n) of the calibration score that serves as threshold.

    Refusing what lies *above* that score refuses a fresh exchangeable request with probability at most `alpha`:
    on average over calibrations (`confidence=None`, rank ceil((n + 1)(1 - alpha))), or, with probability `confidence` over
    the calibration set, in that very calibration (smallest rank k with P(Beta(k, n - k + 1) >= 1 - alpha) >= confidence).
    Raises `GateError` when n is too small, naming the smallest rate that n allows.
    Source: Vovk et al. 2005 (split conformal prediction); Vovk 2012 (training-conditional validity).
    """
    if not 0 < alpha < 1:
        raise GateError(f"the largest share of false refusals must lie between 0 and 1, not {alpha}")
    if confidence is None:
        rank = math.ceil((n + 1) * (1 - alpha) - 1e-9)
    else:
        if not 0 < confidence < 1:
            raise GateError(f"confidence must lie between 0 and 1, not {confidence}")
        ranks = np.arange(1, n + 1)
        enough = beta.sf(1 - alpha, ranks, n - ranks + 1) >= confidence - 1e-12
        rank = int(ranks[enough][0]) if enough.any() else n + 1
    if rank > n:
        stated = "" if confidence is None else f" with {confidence:.0%} confidence"
        raise GateError(
            f"{n} calibration prompts are too few for at most {alpha:.3%} false refusals{stated}: "
            f"{smallest_n(alpha, confidence)} are needed; with {n} the smallest rate is "
            f"{smallest_rate(n, confidence):.2%} (--max-false-refusal {smallest_rate(n, confidence):.4f})"
        )
    return rank


def smallest_rate(n: int, confidence: float | None = None) -> float:
    """The smallest share of false refusals that n calibration prompts can guarantee, rounded up at the fourth decimal."""
    exact = 1 / (n + 1) if confidence is None else 1 - (1 - confidence) ** (1 / n) if n else 1.0
    return min(1.0, math.ceil(exact * 1e4) / 1e4)


def smallest_n(alpha: float, confidence: float | None = None) -> int:
    """The fewest calibration prompts that can guarantee `alpha`: 99 for 1%, 230 for 1% with 90% confidence."""
    if confidence is None:
        return math.ceil(1 / alpha - 1 - 1e-9)
    return math.ceil(math.log(1 - confidence) / math.log(1 - alpha) - 1e-9)
