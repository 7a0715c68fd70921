"""The baseline, EUA, against every other contestant on the same questions: where it wins, ties and loses. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student

from d2unlearn.comparison.records import ORACLE, ORIGINAL, Judged, JudgedSet
from d2unlearn.schema import Better, Kind

Floats = NDArray[np.float64]
Result = Literal["win", "tie", "loss"]
BASELINE = "eua"
"""What the others are compared with."""
CONFIDENCE = 0.95
DRAWS = 4000
RESPECTS: dict[Kind, tuple[tuple[str, Better], ...]] = {
    "forget": (("extraction_strength", "lower"), ("guarded_refusal_rate", "higher")),
    "retain": (("extraction_strength", "higher"), ("guarded_refusal_rate", "lower")),
}
"""In what contestants are compared question by question, on each set: what is left in the weights, and what is refused."""
ATTACKED = ("first", "20")
"""What comes back is compared seed by seed: after relearning whole authors for 20 steps."""


@dataclass(frozen=True)
class Outcome:
    """A contestant against the baseline in one respect, on the same questions. difference: contestant's minus baseline's mean.

    respect: `SET.METRIC`, or what comes back; `theme`: the same for all sets of a kind. `result`: of the baseline. `n`:
    questions; seeds for what comes back. The interval's confidence is 95% over all contestants together (Bonferroni).
    """

    contestant: str
    respect: str
    theme: str
    difference: float
    low: float
    high: float
    n: int
    result: Result


def outcomes_of(runs: Sequence[Judged], names: Sequence[str]) -> list[Outcome]:
    """The baseline against every method and guard, in every respect, on the seeds that both were judged with."""
    base = [run for run in runs if run.contestant == BASELINE]
    oracle = next((run for run in runs if run.contestant == ORACLE), None)
    original = next((run for run in runs if run.contestant == ORIGINAL), None)
    rivals = [name for name in names if name not in (BASELINE, ORACLE, ORIGINAL)]
    found = []
    for name in rivals if base else ():
        theirs = [run for run in runs if run.contestant == name]
        if theirs[0].kind == "guard" and original is not None:
            theirs = [_with_weights_of(run, original) for run in theirs]
        seeds = {run.seed for run in theirs} & {run.seed for run in base}
        pair = [[run for run in side if run.seed in seeds] for side in (base, theirs)]
        if seeds:
            confidence = 1 - (1 - CONFIDENCE) / len(rivals)
            found += _respects(name, pair[0], pair[1], oracle, confidence=confidence)
            found += _comeback(name, pair[0], pair[1], confidence=confidence)
    return found


def paired_interval(
    base: ArrayLike, rival: ArrayLike, floor: ArrayLike | None, groups: Sequence[str], *, confidence: float, seed: int = 0
) -> tuple[float, float, float]:
    """(difference, low, high) of two means over the same questions, rival minus base, by a bootstrap over groups.

    floor: the oracle's values. With them, means are counted from the oracle's up: max(mean, oracle's mean), so that below what
    was never known nothing is better than anything else.
    """
    columns = [np.asarray(each, dtype=np.float64) for each in (base, rival, *(() if floor is None else (floor,)))]
    _, index = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.stack([np.bincount(index, weights=column) for column in columns])
    counts = np.bincount(index).astype(np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(counts), size=(DRAWS, len(counts)))
    drawn_counts = counts[drawn].sum(axis=1)
    differences = _difference(*(each[drawn].sum(axis=1) / drawn_counts for each in sums))
    low, high = np.quantile(differences, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(_difference(*(column.mean() for column in columns))), float(low), float(high)


def result_of(low: float, high: float, better: Better) -> Result:
    """Of the baseline, from the interval of rival minus baseline."""
    if not (low > 0 or high < 0):
        return "tie"
    return "win" if (low > 0) == (better == "lower") else "loss"


def _difference(base: Floats, rival: Floats, floor: Floats | None = None) -> Floats:
    if floor is None:
        return rival - base
    return np.maximum(rival, floor) - np.maximum(base, floor)


def _respects(
    name: str, base: Sequence[Judged], theirs: Sequence[Judged], oracle: Judged | None, *, confidence: float
) -> list[Outcome]:
    found = []
    for each in base[0].sets:
        for metric, better in RESPECTS[each.kind]:
            ours, other = ([_values(run, each.name, metric) for run in side] for side in (base, theirs))
            if any(values is None for values in (*ours, *other)):
                continue
            means = [np.mean(np.array(side, dtype=np.float64), axis=0) for side in (ours, other)]
            known = ~np.isnan(means[0]) & ~np.isnan(means[1])
            floor = _floor(oracle, each, metric, better)
            groups = [group for group, kept in zip(each.groups, known, strict=True) if kept]
            difference, low, high = paired_interval(
                means[0][known], means[1][known], None if floor is None else floor[known], groups, confidence=confidence
            )
            result = result_of(low, high, better)
            named = f"{each.name}.{metric}", f"{each.kind}.{metric}"
            found.append(Outcome(name, *named, difference, low, high, len(groups), result))
    return found


def _comeback(name: str, base: Sequence[Judged], theirs: Sequence[Judged], *, confidence: float) -> list[Outcome]:
    """What relearning brings back, from the differences of two seeds or more (Student's t)."""
    ours, other = ({run.seed: value for run in side if (value := _returned(run)) is not None} for side in (base, theirs))
    differences = np.array([other[seed] - ours[seed] for seed in sorted(ours.keys() & other.keys())])
    if len(differences) < 2:
        return []
    half = student.ppf((1 + confidence) / 2, len(differences) - 1) * differences.std(ddof=1) / len(differences) ** 0.5
    mean, low, high = (float(differences.mean() + shift) for shift in (0.0, -half, half))
    respect = f"comeback.{'.'.join(ATTACKED)}"
    return [Outcome(name, respect, "comeback", mean, low, high, len(differences), result_of(low, high, "lower"))]


def _returned(run: Judged) -> float | None:
    choice, steps = ATTACKED
    return next((each.probability[steps].value for each in run.comebacks if each.choice == choice), None)


def _floor(oracle: Judged | None, each: JudgedSet, metric: str, better: Better) -> Floats | None:
    """The oracle's knowledge of a forget set, below which there is nothing to win."""
    if oracle is None or each.kind != "forget" or better != "lower":
        return None
    values = _values(oracle, each.name, metric)
    return None if values is None else np.array(values, dtype=np.float64)


def _values(run: Judged, name: str, metric: str) -> tuple[float, ...] | None:
    found = run.of_set(name)
    return None if found is None else found.values.get(metric)


def _with_weights_of(run: Judged, original: Judged) -> Judged:
    """A guard's run whose raw knowledge is the original's: that is what its weights hold."""
    sets = []
    for each in run.sets:
        weights = original.of_set(each.name)
        raw = {} if weights is None else {k: v for k, v in weights.values.items() if not k.startswith("guarded_")}
        sets.append(replace(each, values={**each.values, **raw}))
    return replace(run, sets=tuple(sets))
