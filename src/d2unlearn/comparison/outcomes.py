"""The proposed method against every other entry on the same questions: where it wins, ties and loses. Pure.

Other seeds and other groups of questions might have given other numbers. A difference counts where chance of both kinds (after
relearning, of seeds alone) explains it in fewer than one case of twenty, over all entries compared in a metric together.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from d2unlearn.attacks.relearned_rows import RowChoice
from d2unlearn.attacks.wordings import ANY
from d2unlearn.comparison.records import ORIGINAL, PROPOSED_METHOD, RETAIN_MODEL, RunResult, SetResult
from d2unlearn.schema import Better, Kind
from d2unlearn.stats import Floats, crossed_test, holm

Result = Literal["win", "tie", "loss"]
LEVEL = 0.05
STRENGTH, REFUSAL_RATE, GUARDED_ROUGE = "extraction_strength", "guarded_refusal_rate", "guarded_rouge_l_recall"
METRICS: dict[Kind, tuple[tuple[str, Better], ...]] = {
    "forget": ((STRENGTH, "lower"), (GUARDED_ROUGE, "lower"), (REFUSAL_RATE, "higher")),
    "retain": ((STRENGTH, "higher"), (GUARDED_ROUGE, "higher"), (REFUSAL_RATE, "lower")),
}
"""What is compared question by question: what is left in the weights, what is still told, what is refused."""
UNGUARDED = {GUARDED_ROUGE: "rouge_l_recall"}
"""What stands for a guarded number where there is no guard."""
RELEARNED_ROWS: tuple[RowChoice, ...] = ("whole groups", "spread over groups", "one row", "half of each group")
ATTACK_STEPS = 80
"""Which rows are relearned, and for how many steps, each at the learning rate at which most comes back."""
OTHER_WORDS = "other_words"
"""Begins the name of the set of forgotten questions asked in the wordings that judge: `other_words.NUMBER.HASH`."""
COMEBACK = "comeback"
RELEARNED = (f"{COMEBACK}.spread over groups.{ATTACK_STEPS}", f"{COMEBACK}.first.20")
"""What is compared seed by seed, of what comes back. The second is of older results, at one learning rate."""


@dataclass(frozen=True)
class MetricOutcome:
    """An entry against the proposed method in one metric, on the same questions. difference: the entry's minus its mean.

    respect: `SET.METRIC`, or what comes back; `theme`: the same for all sets of a kind. `p`: of the difference being chance,
    adjusted for all entries compared in the metric. `result`: the proposed method's. `n`: questions; seeds for what comes back.
    """

    contestant: str
    respect: str
    theme: str
    difference: float
    p: float
    n: int
    result: Result


class PairedDifference(NamedTuple):
    """An entry's mean minus the proposed method's, and the p-value of its being chance, for this pair alone."""

    value: float
    p: float
    n: int


class _Pair(NamedTuple):
    """An entry's runs and the proposed method's, seed by seed."""

    entry: str
    base: tuple[RunResult, ...]
    rival: tuple[RunResult, ...]


def outcomes_of(
    runs: Sequence[RunResult], names: Sequence[str], *, refuses_in_text: Collection[str] = ()
) -> list[MetricOutcome]:
    """The proposed method against every method and guard, in every metric, on the seeds that both were evaluated with.

    refuses_in_text: entries that refuse in words, or not at all; refusals are not compared with theirs.
    """
    pairs = list(_pairs(runs, names))
    if not pairs:
        return []
    retain_model = next((run for run in runs if run.contestant == RETAIN_MODEL), None)
    outcomes = []
    for questions, metric, better in _compared_in(pairs):
        floor = _floor(retain_model, questions, metric, better)
        skipped = refuses_in_text if metric == REFUSAL_RATE else ()
        compared = {pair.entry: _by_question(pair, questions, metric, floor) for pair in pairs if pair.entry not in skipped}
        outcomes += _outcomes(f"{questions.name}.{metric}", f"{questions.kind}.{metric}", better, compared)
    metric = relearned_in([run for pair in pairs for run in (*pair.base, *pair.rival)])
    return outcomes + _outcomes(metric, COMEBACK, "lower", {pair.entry: _by_seed(pair, metric) for pair in pairs})


def relearned_in(runs: Sequence[RunResult]) -> str:
    """The one of `RELEARNED` that most of these runs have; of equals the first."""
    return max(RELEARNED, key=lambda metric: sum(_returned(run, metric) is not None for run in runs))


def difference_of(base: Floats, rival: Floats, groups: Sequence[str], floor: Floats | None = None) -> PairedDifference:
    """Rival minus base. base, rival: [seeds, questions]; floor: the retain model's values of the questions.

    With a floor, lower is better, and means count from the retain model's up, max(mean, its mean): below what was never known
    nothing is better than anything else. The side that holds more then has to hold more than the other and than that model.
    """
    mean, p = crossed_test(rival - base, groups)
    if floor is None or math.isnan(p):
        return PairedDifference(mean, p, base.shape[1])
    above = crossed_test((rival if mean > 0 else base) - floor, groups)
    least = floor.mean()
    value = float(max(rival.mean(), least) - max(base.mean(), least))
    return PairedDifference(value, max(p, above.p) if above.mean > 0 else 1.0, base.shape[1])


def result_of(difference: float, p: float, better: Better) -> Result:
    """Of the proposed method, from rival minus base."""
    if not p < LEVEL:
        return "tie"
    return "win" if (difference > 0) == (better == "lower") else "loss"


def _pairs(runs: Sequence[RunResult], names: Sequence[str]) -> Iterator[_Pair]:
    by_seed = {run.seed: run for run in runs if run.contestant == PROPOSED_METHOD}
    original = next((run for run in runs if run.contestant == ORIGINAL), None)
    for name in names:
        theirs = [run for run in runs if run.contestant == name and run.seed in by_seed]
        if name == PROPOSED_METHOD or not theirs or theirs[0].kind == "as_is":
            continue
        if theirs[0].kind == "guard":
            theirs = [_with_weights_of(run, original) for run in theirs] if original is not None else []
        if theirs:
            yield _Pair(name, tuple(by_seed[run.seed] for run in theirs), tuple(theirs))


def _compared_in(pairs: Sequence[_Pair]) -> Iterator[tuple[SetResult, str, Better]]:
    """What is compared question by question: every set in its metrics, and what is told in any other words."""
    for questions in pairs[0].base[0].sets:
        for metric, better in METRICS[questions.kind]:
            yield questions, metric, better
    reworded = {questions.name: questions for pair in pairs for run in pair.base for questions in run.reworded}
    for questions in reworded.values():
        yield questions, ANY, "lower"


def _outcomes(
    metric: str, metric_group: str, better: Better, compared: Mapping[str, PairedDifference | None]
) -> list[MetricOutcome]:
    """One outcome for each entry that there is a difference to, adjusted for their number."""
    known = {name: found for name, found in compared.items() if found is not None and not math.isnan(found.p)}
    adjusted = holm([found.p for found in known.values()])
    return [
        MetricOutcome(name, metric, metric_group, found.value, p, found.n, result_of(found.value, p, better))
        for (name, found), p in zip(known.items(), adjusted, strict=True)
    ]


def _by_question(pair: _Pair, questions: SetResult, metric: str, floor: Floats | None) -> PairedDifference | None:
    """On a set's questions that every run answered. None where some run has no such numbers."""
    sides = []
    for runs in (pair.base, pair.rival):
        values = [_values(run, questions.name, metric) for run in runs]
        if any(found is None for found in values):
            return None
        sides.append(np.array(values))
    known = ~np.isnan(np.vstack([*sides, *([] if floor is None else [floor])])).any(axis=0)
    if not known.any():
        return None
    groups = list(np.array(questions.groups)[known])
    if len(set(groups)) == 1:  # nothing is known of others: every question stands for itself
        groups = list(map(str, range(len(groups))))
    return difference_of(sides[0][:, known], sides[1][:, known], groups, None if floor is None else floor[known])


def _by_seed(pair: _Pair, metric: str) -> PairedDifference | None:
    """What relearning brings back, in two seeds or more."""
    returned = [
        (_returned(ours, metric), _returned(theirs, metric)) for ours, theirs in zip(pair.base, pair.rival, strict=True)
    ]
    differences = np.array([[theirs - ours] for ours, theirs in returned if ours is not None and theirs is not None])
    if len(differences) < 2:
        return None
    return PairedDifference(*crossed_test(differences, ["all"]), len(differences))


def _returned(run: RunResult, metric: str) -> float | None:
    _, choice, steps = metric.split(".")
    found = [attack.probability.get(steps) for attack in run.comebacks if attack.choice == choice]
    return found[0].value if found and found[0] is not None else None


def _floor(retain_model: RunResult | None, questions: SetResult, metric: str, better: Better) -> Floats | None:
    """The retain model's values on a forget set, below whose mean there is nothing to win; NaN where it has none."""
    if retain_model is None or questions.kind != "forget" or better != "lower":
        return None
    values = _values(retain_model, questions.name, metric)
    return np.full(questions.n, np.nan) if values is None else values


def _values(run: RunResult, name: str, metric: str) -> Floats | None:
    questions = run.of_set(name)
    values = {} if questions is None else questions.values
    chosen = values.get(metric, values.get(UNGUARDED.get(metric, metric)))
    return None if chosen is None else np.array(chosen, dtype=np.float64)


def _with_weights_of(run: RunResult, original: RunResult) -> RunResult:
    """A guard's run whose raw knowledge is the original's: what its weights hold, tell in other words, and relearn."""
    sets = []
    for questions in run.sets:
        weights = original.of_set(questions.name)
        raw = {} if weights is None else {k: v for k, v in weights.values.items() if not k.startswith("guarded_")}
        sets.append(replace(questions, values={**questions.values, **raw}))
    return replace(run, sets=tuple(sets), comebacks=original.comebacks, reworded=original.reworded)
