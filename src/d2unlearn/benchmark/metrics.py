"""The kinds of metric that a suite is made of: each turns scored sets into one number with the examples it rests on.

A suite (`suites.py`) is a table of these. They are pure: what a model said of every answer is in the `MetricInputs` already.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from d2unlearn.benchmark.conventions import Convention
from d2unlearn.benchmark.loglikelihood import AnswerScores
from d2unlearn.metrics.membership import forget_quality, membership_auc, privleak, zlib_score
from d2unlearn.metrics.memorization import TRUTH_AGGREGATORS, option_probability
from d2unlearn.metrics.text import Rouge, model_utility
from d2unlearn.schema import Better, Example, Kind

Floats = NDArray[np.float64]
Aggregate = Callable[[Sequence[Floats]], float]
"""From one array of values a column, NaN where an example could not be scored, to one number."""


@dataclass(frozen=True)
class SetScores:
    """One set of a benchmark, scored; every sequence has one entry an example, or none where that was not asked for.

    `true`: the true answers; `others`: further columns of answers, several an example. `texts`: the true answers as the zlib
    attack compresses them; `inputs`, `truths`, `generated`, `rouge`: of the raw greedy answers. `gradients`, `reference_nll`:
    for the attacks that need them. `missing`: why there is no example.
    """

    name: str
    kind: Kind
    examples: tuple[Example, ...] = ()
    true: tuple[AnswerScores, ...] = ()
    others: Mapping[str, tuple[tuple[AnswerScores, ...], ...]] = field(default_factory=dict)
    texts: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    truths: tuple[str, ...] = ()
    generated: tuple[str, ...] = ()
    rouge: tuple[Rouge, ...] = ()
    gradients: tuple[float, ...] = ()
    reference_nll: tuple[float, ...] = ()
    missing: str = ""


@dataclass(frozen=True)
class Column:
    """One value for each example of a set. values: [n], NaN where it could not be scored."""

    set_name: str
    values: Floats


@dataclass(frozen=True)
class MetricValue:
    """A metric's number, `aggregate` of its columns. `records`: open-unlearning's entry for each example.

    `quick` stands in for `aggregate` in an interval's many draws. `parts`: the two sides of a membership attack. `reason`: why
    there is no number.
    """

    columns: tuple[Column, ...] = ()
    aggregate: Aggregate | None = None
    quick: Aggregate | None = None
    records: tuple[Mapping[str, Any], ...] = ()
    parts: Mapping[str, MetricValue] = field(default_factory=dict)
    reason: str = ""

    @property
    def value(self) -> float:
        """NaN when nothing could be scored."""
        return math.nan if self.aggregate is None else self.aggregate([column.values for column in self.columns])


@dataclass(frozen=True)
class MetricInputs:
    """All that a suite's metrics are computed from.

    `reference`: the retain model's findings in open-unlearning's format, empty when none were given; `found`: the findings so
    far, by key.
    """

    sets: Mapping[str, SetScores]
    convention: Convention
    reference: Mapping[str, Any] = field(default_factory=dict)
    found: Mapping[str, MetricValue] = field(default_factory=dict)


@dataclass(frozen=True)
class Metric(ABC):
    """One kind of metric. `better`: which direction is good; `meaning`: how to read the number, in one line."""

    better: Better = field(kw_only=True)
    meaning: str = field(kw_only=True)

    @abstractmethod
    def of(self, study: MetricInputs) -> MetricValue:
        """The finding. Reads of `study.found` only what stands before it in the suite's table."""


def mean(columns: Sequence[Floats]) -> float:
    """Mean of all scored values; NaN when there is none."""
    scored = np.concatenate([values[~np.isnan(values)] for values in columns])
    return float(scored.mean()) if len(scored) else math.nan


@dataclass(frozen=True)
class Probability(Metric):
    """Mean over examples of exp(-mean NLL) of a column's answer; of several answers, their mean first."""

    on: str
    column: str = "answer"

    def of(self, study: MetricInputs) -> MetricValue:
        scored = study.sets[self.on]
        answers = [(each,) for each in scored.true] if self.column == "answer" else list(scored.others.get(self.column, ()))
        losses = [[each.nll for each in some] for some in answers]
        probabilities = [[math.exp(-nll) for nll in some] for some in losses]
        records = [{"prob": _one_or_all(p), "avg_loss": _one_or_all(nll)} for p, nll in zip(probabilities, losses, strict=True)]
        return _averaged(scored, [sum(p) / len(p) if p else math.nan for p in probabilities], records)


@dataclass(frozen=True)
class OptionProbability(Metric):
    """Mean over examples of the true answer's share of all options' probabilities. `right`, `wrong`: keys before it."""

    on: str
    right: str
    wrong: str

    def of(self, study: MetricInputs) -> MetricValue:
        pairs = _losses(study, self.right, self.wrong)
        values = [option_probability(right[0], wrong, epsilon=study.convention.epsilon) for right, wrong in pairs]
        return _averaged(study.sets[self.on], values, [{"prob": value} for value in values])


@dataclass(frozen=True)
class TruthRatio(Metric):
    """Mean over examples of what the aggregator makes of the truth ratio. `right`, `wrong`: keys before it."""

    on: str
    right: str
    wrong: str
    aggregator: str

    def of(self, study: MetricInputs) -> MetricValue:
        how, epsilon = TRUTH_AGGREGATORS[self.aggregator], study.convention.epsilon
        pairs = _losses(study, self.right, self.wrong)
        scores = [how.score(right[0], wrong, epsilon=epsilon) for right, wrong in pairs]
        values = [how.value(score, epsilon=epsilon) for score in scores]
        return _averaged(study.sets[self.on], values, [{"score": score} for score in scores])


@dataclass(frozen=True)
class RougeScore(Metric):
    """Mean over examples of one ROUGE statistic of the raw greedy answer."""

    on: str
    statistic: str

    def of(self, study: MetricInputs) -> MetricValue:
        scored = study.sets[self.on]
        texts = zip(scored.rouge, scored.inputs, scored.truths, scored.generated, strict=True)
        records = [
            {**each._asdict(), "input": asked, "ground_truth": truth, "generation": text} for each, asked, truth, text in texts
        ]
        return _averaged(scored, [getattr(each, self.statistic) for each in scored.rouge], records)


@dataclass(frozen=True)
class OfTrueAnswer(Metric):
    """Mean over examples of one field of the true answer's scores. `zero_if_empty`: where the convention says so."""

    on: str
    score: str
    zero_if_empty: bool = False

    def of(self, study: MetricInputs) -> MetricValue:
        scored = study.sets[self.on]
        zero = self.zero_if_empty and study.convention.empty_is_zero
        values = [_number(getattr(each, self.score), zero) for each in scored.true]
        return _averaged(scored, values, [{"score": value} for value in values])


@dataclass(frozen=True)
class Membership(Metric):
    """AUC of one attack of `ATTACKS`, forgotten against held-out examples."""

    attack: str
    forget: str
    holdout: str

    def of(self, study: MetricInputs) -> MetricValue:
        sides = {"forget": study.sets[self.forget], "holdout": study.sets[self.holdout]}
        empty = [scored.missing or f"{scored.name} has nothing to score" for scored in sides.values() if not scored.true]
        if empty:
            return MetricValue(reason=empty[0])
        scores = {side: _attacked(self.attack, scored, study.convention) for side, scored in sides.items()}
        parts = {
            side: _averaged(scored, scores[side], [{"score": score} for score in scores[side]])
            for side, scored in sides.items()
        }
        reason = next((part.reason for part in parts.values() if part.reason), "")
        if reason:
            return MetricValue(parts=parts, reason=reason)
        return MetricValue((*parts["forget"].columns, *parts["holdout"].columns), _auc, parts=parts)


@dataclass(frozen=True)
class ForgetQuality(Metric):
    """p-value of the KS test of the truth ratios against the retain model's. `ratio`: a key before it."""

    ratio: str

    def of(self, study: MetricInputs) -> MetricValue:
        if not study.reference:
            return MetricValue(reason="needs the retain model's logs (--retain-logs)")
        logged = (study.reference.get(self.ratio) or {}).get("value_by_index")
        if not logged:
            return MetricValue(reason=f"the retain model's logs hold no {self.ratio}")
        found = study.found[self.ratio]
        if found.reason:
            return MetricValue(reason=found.reason)
        reference = [_number(entry["score"]) for entry in logged.values()]
        ratios = np.array([record["score"] for record in found.records], dtype=np.float64)
        return MetricValue(
            (Column(found.columns[0].set_name, ratios),),
            lambda columns: forget_quality(columns[0], reference),
            lambda columns: forget_quality(columns[0], reference, method="asymp"),
        )


@dataclass(frozen=True)
class PrivLeak(Metric):
    """An attack's AUC against the retain model's. `attack`: a key before it."""

    attack: str

    def of(self, study: MetricInputs) -> MetricValue:
        found, convention = study.found[self.attack], study.convention
        if found.reason:
            return MetricValue(reason=found.reason)
        logged = (study.reference.get(self.attack) or {}).get("agg_value")
        reference = convention.assumed_reference_auc if logged is None else logged
        if reference is None:
            lacking = f"the retain model's logs hold no {self.attack}" if study.reference else "needs the retain model's logs"
            return MetricValue(reason=f"{lacking} (--retain-logs)")
        return MetricValue(found.columns, lambda both: privleak(_auc(both), reference, epsilon=convention.epsilon))


@dataclass(frozen=True)
class Utility(Metric):
    """Harmonic mean of other metrics that are means. `keys`: those before it."""

    keys: tuple[str, ...]

    def of(self, study: MetricInputs) -> MetricValue:
        findings = [study.found[key] for key in self.keys]
        reason = next((finding.reason for finding in findings if finding.reason), "")
        if reason:
            return MetricValue(reason=reason)
        columns = tuple(finding.columns[0] for finding in findings)
        return MetricValue(columns, lambda values: model_utility([mean([each]) for each in values]))


Attack = Callable[[SetScores, Convention], list[float]]

ATTACKS: dict[str, Attack] = {
    "loss": lambda scored, _: [each.nll for each in scored.true],
    "zlib": lambda scored, _: [zlib_score(each.nll, text) for each, text in zip(scored.true, scored.texts, strict=True)],
    "reference": lambda scored, _: [
        each.nll - reference for each, reference in zip(scored.true, scored.reference_nll, strict=True)
    ],
    "min_k": lambda scored, convention: [_number(each.min_k, convention.empty_is_zero) for each in scored.true],
    "min_k_plus_plus": lambda scored, convention: [
        _number(each.min_k_plus_plus, convention.empty_is_zero) for each in scored.true
    ],
    "gradnorm": lambda scored, _: list(scored.gradients),
}
"""Each attack's score of every example of a set; higher: less likely a member."""


def _attacked(attack: str, scored: SetScores, convention: Convention) -> list[float]:
    return ATTACKS[attack](scored, convention)


def _auc(both: Sequence[Floats]) -> float:
    """[forget, holdout] scores to the attack's AUC."""
    return membership_auc(both[0], both[1])


def _averaged(scored: SetScores, values: ArrayLike, records: Sequence[Mapping[str, Any]]) -> MetricValue:
    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        return MetricValue(reason=scored.missing or f"{scored.name} has nothing to score")
    reason = f"no answer of {scored.name} could be scored" if np.isnan(array).all() else ""
    return MetricValue((Column(scored.name, array),), mean, records=tuple(records), reason=reason)


def _losses(study: MetricInputs, right: str, wrong: str) -> list[tuple[list[float], list[float]]]:
    """(right answer's, wrong answers') mean NLLs of every example, from two probability findings."""
    sides = [[_as_list(record["avg_loss"]) for record in study.found[key].records] for key in (right, wrong)]
    return list(zip(*sides, strict=True)) if all(sides) else []


def _one_or_all(values: Sequence[float]) -> float | list[float]:
    """A single answer's number as such; of several, the list."""
    return values[0] if len(values) == 1 else list(values)


def _as_list(value: float | list[float]) -> list[float]:
    return value if isinstance(value, list) else [value]


def _number(value: float | None, zero: bool = False) -> float:
    """NaN for None; 0 for NaN where asked."""
    number = math.nan if value is None else float(value)
    return 0.0 if zero and math.isnan(number) else number
