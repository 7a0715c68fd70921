"""The proposed method, EUA, against every other contestant on the same questions: where it wins, ties and loses. Pure.

Other seeds and other authors might have given other numbers. A difference counts where chance of both kinds (after relearning,
of seeds alone) explains it in fewer than one case of twenty, over all contestants of a respect together.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from d2unlearn.comparison.records import ORACLE, ORIGINAL, PROPOSED_METHOD, Judged, JudgedSet
from d2unlearn.schema import Better, Kind
from d2unlearn.stats import crossed_test, holm

Floats = NDArray[np.float64]
Result = Literal["win", "tie", "loss"]
LEVEL = 0.05
REFUSED, TOLD = "guarded_refusal_rate", "guarded_rouge_l_recall"
RESPECTS: dict[Kind, tuple[tuple[str, Better], ...]] = {
    "forget": (("extraction_strength", "lower"), (TOLD, "lower"), (REFUSED, "higher")),
    "retain": (("extraction_strength", "higher"), (TOLD, "higher"), (REFUSED, "lower")),
}
"""In what contestants are compared question by question: what is left in the weights, what is still told, what is refused."""
UNGUARDED = {TOLD: "rouge_l_recall"}
"""What stands for a guarded number where there is no guard."""
ATTACKED = ("first", "20")
"""What comes back is compared seed by seed: after relearning whole authors for 20 steps."""
COMEBACK = f"comeback.{'.'.join(ATTACKED)}"


@dataclass(frozen=True)
class Outcome:
    """A contestant against the proposed method in one respect, on the same questions. difference: contestant's mean minus its.

    respect: `SET.METRIC`, or what comes back; `theme`: the same for all sets of a kind. `p`: of the difference being chance,
    adjusted for all contestants of the respect. `result`: of the proposed method. `n`: questions; seeds for what comes back.
    """

    contestant: str
    respect: str
    theme: str
    difference: float
    p: float
    n: int
    result: Result


@dataclass(frozen=True)
class Difference:
    """Contestant minus the proposed method, and the p-value of its being chance, for this pair alone."""

    value: float
    p: float
    n: int


@dataclass(frozen=True)
class Pair:
    """A contestant's runs and the proposed method's, seed by seed."""

    contestant: str
    base: tuple[Judged, ...]
    rival: tuple[Judged, ...]


def outcomes_of(runs: Sequence[Judged], names: Sequence[str], *, ungated: Collection[str] = ()) -> list[Outcome]:
    """The proposed method against every method and guard, in every respect, on the seeds that both were judged with.

    ungated: contestants that refuse in words, or not at all; refusals are not compared with theirs.
    """
    pairs = list(_pairs(runs, names))
    oracle = next((run for run in runs if run.contestant == ORACLE), None)
    found = []
    for each in pairs[0].base[0].sets if pairs else ():
        for metric, better in RESPECTS[each.kind]:
            floor = _floor(oracle, each, metric, better)
            compared = {
                pair.contestant: _by_question(pair, each, metric, floor)
                for pair in pairs
                if metric != REFUSED or pair.contestant not in ungated
            }
            found += _outcomes(f"{each.name}.{metric}", f"{each.kind}.{metric}", better, compared)
    return found + _outcomes(COMEBACK, "comeback", "lower", {pair.contestant: _by_seed(pair) for pair in pairs})


def difference_of(base: Floats, rival: Floats, groups: Sequence[str], floor: Floats | None = None) -> Difference:
    """Rival minus base. base, rival: [seeds, questions]; floor: the oracle's values of the questions.

    With a floor, lower is better, and means count from the oracle's up, max(mean, oracle's mean): below what was never known
    nothing is better than anything else. The side that holds more then has to hold more than the other and than the oracle.
    """
    found = crossed_test(rival - base, groups)
    n = base.shape[1]
    if floor is None or math.isnan(found.p):
        return Difference(found.mean, found.p, n)
    least = floor.mean()
    above = crossed_test((rival if found.mean > 0 else base) - floor, groups)
    p = max(found.p, above.p) if above.mean > 0 else 1.0
    return Difference(float(max(rival.mean(), least) - max(base.mean(), least)), p, n)


def result_of(difference: float, p: float, better: Better) -> Result:
    """Of the proposed method, from rival minus own."""
    if not p < LEVEL:
        return "tie"
    return "win" if (difference > 0) == (better == "lower") else "loss"


def _pairs(runs: Sequence[Judged], names: Sequence[str]) -> Iterator[Pair]:
    by_seed = {run.seed: run for run in runs if run.contestant == PROPOSED_METHOD}
    original = next((run for run in runs if run.contestant == ORIGINAL), None)
    for name in names:
        if name in (PROPOSED_METHOD, ORACLE, ORIGINAL):
            continue
        theirs = [run for run in runs if run.contestant == name and run.seed in by_seed]
        if theirs and theirs[0].kind == "guard":
            theirs = [_with_weights_of(run, original) for run in theirs] if original is not None else []
        if theirs:
            yield Pair(name, tuple(by_seed[run.seed] for run in theirs), tuple(theirs))


def _outcomes(respect: str, theme: str, better: Better, compared: dict[str, Difference | None]) -> list[Outcome]:
    """One outcome for each contestant that there is a difference to, adjusted for their number."""
    there = {name: each for name, each in compared.items() if each is not None and not math.isnan(each.p)}
    adjusted = holm([each.p for each in there.values()])
    return [
        Outcome(name, respect, theme, each.value, p, each.n, result_of(each.value, p, better))
        for (name, each), p in zip(there.items(), adjusted, strict=True)
    ]


def _by_question(pair: Pair, judged: JudgedSet, metric: str, floor: Floats | None) -> Difference | None:
    """On a set's questions that every run answered. None where some run has no such numbers."""
    sides = []
    for runs in (pair.base, pair.rival):
        values = [found for run in runs if (found := _values(run, judged.name, metric)) is not None]
        if len(values) < len(runs):
            return None
        sides.append(np.array(values))
    known = ~np.isnan(np.vstack([*sides, *([] if floor is None else [floor])])).any(axis=0)
    if not known.any():
        return None
    groups = list(np.array(judged.groups)[known])
    if len(set(groups)) == 1:  # nothing is known of others: every question stands for itself
        groups = list(map(str, range(len(groups))))
    return difference_of(sides[0][:, known], sides[1][:, known], groups, None if floor is None else floor[known])


def _by_seed(pair: Pair) -> Difference | None:
    """What relearning brings back, in two seeds or more."""
    found = [(_returned(ours), _returned(theirs)) for ours, theirs in zip(pair.base, pair.rival, strict=True)]
    differences = np.array([[theirs - ours] for ours, theirs in found if ours is not None and theirs is not None])
    if len(differences) < 2:
        return None
    mean, p = crossed_test(differences, ["all"])
    return Difference(mean, p, len(differences))


def _returned(run: Judged) -> float | None:
    choice, steps = ATTACKED
    return next((each.probability[steps].value for each in run.comebacks if each.choice == choice), None)


def _floor(oracle: Judged | None, judged: JudgedSet, metric: str, better: Better) -> Floats | None:
    """The oracle's values on a forget set, below whose mean there is nothing to win; NaN where it has none."""
    if oracle is None or judged.kind != "forget" or better != "lower":
        return None
    values = _values(oracle, judged.name, metric)
    return np.full(judged.n, np.nan) if values is None else values


def _values(run: Judged, name: str, metric: str) -> Floats | None:
    found = run.of_set(name)
    values = {} if found is None else found.values
    chosen = values.get(metric, values.get(UNGUARDED.get(metric, metric)))
    return None if chosen is None else np.array(chosen, dtype=np.float64)


def _with_weights_of(run: Judged, original: Judged) -> Judged:
    """A guard's run whose raw knowledge is the original's: that is what its weights hold, and what relearning brings back."""
    sets = []
    for each in run.sets:
        weights = original.of_set(each.name)
        raw = {} if weights is None else {k: v for k, v in weights.values.items() if not k.startswith("guarded_")}
        sets.append(replace(each, values={**each.values, **raw}))
    return replace(run, sets=tuple(sets), comebacks=original.comebacks)
