"""The kinds of metric that a suite is made of: each turns scored sets into one number with the examples it rests on.

A suite (`suites.py`) is a table of these. They are pure: what a model said of every answer is in `MetricInputs` already.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from d2unlearn.benchmark.conventions import Convention
from d2unlearn.benchmark.loglikelihood import AnswerScores
from d2unlearn.generation.guarded import Answer
from d2unlearn.metrics.membership import forget_quality, privleak, zlib_score
from d2unlearn.metrics.memorization import TRUTH_AGGREGATORS, option_probability, truth_ratio
from d2unlearn.metrics.text import Rouge
from d2unlearn.schema import Better, Example, Kind
from d2unlearn.stats import Floats, auroc, harmonic_mean

TRUE_ANSWER = "answer"
"""The column of the true answer; others hold further answers to the same question."""
Aggregate = Callable[[Sequence[Floats]], float]
"""From one array of values a column, NaN where an example could not be scored, to one number."""


@dataclass(frozen=True)
class GeneratedAnswer:
    """A greedy answer beside the truth it is held against. `question`: the prompt's text."""

    question: str
    truth: str
    text: str
    rouge: Rouge


@dataclass(frozen=True)
class SetScores:
    """One set of a benchmark, scored; every sequence has one entry an example, or none where that was not asked for.

    `true`: the true answers; `others`: further columns of answers, several an example. `texts`: the true answers as the zlib
    attack compresses them; `gradients`, `reference_nll`: for the attacks that need them. `generated`: the raw greedy answers;
    `guarded`: those behind the gate, and `decisions` what the gate said of them. `missing`: why there is no example.
    """

    name: str
    kind: Kind
    examples: tuple[Example, ...] = ()
    true: tuple[AnswerScores, ...] = ()
    others: Mapping[str, tuple[tuple[AnswerScores, ...], ...]] = field(default_factory=dict)
    texts: tuple[str, ...] = ()
    gradients: tuple[float, ...] = ()
    reference_nll: tuple[float, ...] = ()
    generated: tuple[GeneratedAnswer, ...] = ()
    guarded: tuple[GeneratedAnswer, ...] = ()
    decisions: tuple[Answer, ...] = ()
    missing: str = ""


@dataclass(frozen=True)
class SetValues:
    """One value for each example of a set. values: [n], NaN where it could not be scored."""

    set_name: str
    values: Floats


@dataclass(frozen=True)
class MetricValue:
    """A metric's number, `aggregate` of its columns. `records`: open-unlearning's entry for each example.

    `quick` stands in for `aggregate` in an interval's many draws. `parts`: the two sides of a membership attack. `reason`: why
    there is no number.
    """

    columns: tuple[SetValues, ...] = ()
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

    `retain_logs`: the retain model's results in open-unlearning's format, empty when none were given; `computed`: the values of
    the metrics so far, by key; `mmlu`: the model's accuracy there, measured elsewhere, NaN for none.
    """

    sets: Mapping[str, SetScores]
    convention: Convention
    retain_logs: Mapping[str, Any] = field(default_factory=dict)
    computed: Mapping[str, MetricValue] = field(default_factory=dict)
    mmlu: float = math.nan

    def value(self, key: str) -> float:
        """A metric's number; NaN for one that is not there."""
        return self.computed[key].value if key in self.computed else math.nan

    def retain_value(self, key: str) -> float:
        """The retain model's; NaN where its logs have none."""
        return _number((self.retain_logs.get(key) or {}).get("agg_value"))

    def retain_records(self, key: str) -> Mapping[str, Mapping[str, Any]]:
        """The retain model's entry for each example, empty where its logs have none."""
        return (self.retain_logs.get(key) or {}).get("value_by_index") or {}


@dataclass(frozen=True)
class Metric(ABC):
    """One kind of metric. `better`: which direction is good."""

    better: Better = field(default="neither", kw_only=True)

    @property
    @abstractmethod
    def meaning(self) -> str:
        """How to read the number, in one line."""

    @property
    def sets(self) -> tuple[str, ...]:
        """The sets that it reads itself; none for one that reads other metrics alone."""
        return ()

    def behind_gate(self, key: str) -> Mapping[str, Metric]:
        """What it is of guarded answers, by key: itself if it reads `generated`; a likelihood knows no gate, and is nothing."""
        return {}

    @abstractmethod
    def compute(self, inputs: MetricInputs) -> MetricValue:
        """Reads of `inputs.computed` only what stands before it in the suite's table."""


def mean_of_columns(columns: Sequence[Floats]) -> float:
    """Mean of all scored values; NaN when there is none."""
    scored = np.concatenate([values[~np.isnan(values)] for values in columns])
    return float(scored.mean()) if len(scored) else math.nan


@dataclass(frozen=True)
class OfOneSet(Metric):
    """A metric that reads one set, `on`."""

    on: str

    @property
    def sets(self) -> tuple[str, ...]:
        return (self.on,)


@dataclass(frozen=True)
class Probability(OfOneSet):
    """Mean over examples of exp(-mean NLL) of a column's answer; of several answers, their mean first."""

    column: str = TRUE_ANSWER

    @property
    def meaning(self) -> str:
        return {
            TRUE_ANSWER: "probability of the true answer, by its tokens' geometric mean: near 0 for what was never learnt",
            "paraphrased_answer": "probability of the right answer in other words",
            "perturbed_answer": "probability of wrong answers of the same form",
        }[self.column]

    def compute(self, inputs: MetricInputs) -> MetricValue:
        scored = inputs.sets[self.on]
        losses = _losses(scored, self.column)
        probabilities = [[math.exp(-nll) for nll in some] for some in losses]
        records = [{"prob": _one_or_all(p), "avg_loss": _one_or_all(nll)} for p, nll in zip(probabilities, losses, strict=True)]
        return averaged(scored, [sum(p) / len(p) if p else math.nan for p in probabilities], records)


@dataclass(frozen=True)
class OptionProbability(OfOneSet):
    """Mean over examples of the true answer's share of all options' probabilities. `wrong`: the column of the others."""

    wrong: str = "perturbed_answer"
    meaning = "the true answer's share against wrong ones: chance is one in as many as there are"

    def compute(self, inputs: MetricInputs) -> MetricValue:
        scored, epsilon = inputs.sets[self.on], inputs.convention.epsilon
        pairs = _pairs(scored, TRUE_ANSWER, self.wrong)
        values = [option_probability(right, wrong, epsilon=epsilon) for right, wrong in pairs]
        return averaged(scored, values, [{"prob": value} for value in values])


@dataclass(frozen=True)
class TruthRatio(OfOneSet):
    """Mean over examples of what the aggregator makes of the truth ratio. `right`, `wrong`: columns."""

    aggregator: str
    right: str = "paraphrased_answer"
    wrong: str = "perturbed_answer"

    @property
    def meaning(self) -> str:
        if self.aggregator == "closer_to_1_better":
            return "whether right and wrong answers are equally likely: 1 as for a model that never knew"
        return "how much likelier the right answer is than wrong ones: 1 knows, 0 does not"

    def compute(self, inputs: MetricInputs) -> MetricValue:
        scored, epsilon = inputs.sets[self.on], inputs.convention.epsilon
        ratios = [truth_ratio(right, wrong, epsilon=epsilon) for right, wrong in _pairs(scored, self.right, self.wrong)]
        values = [TRUTH_AGGREGATORS[self.aggregator](ratio, epsilon=epsilon) for ratio in ratios]
        return averaged(scored, values, [{"score": ratio} for ratio in ratios])


@dataclass(frozen=True)
class RougeScore(OfOneSet):
    """Mean over examples of one ROUGE statistic of the greedy answer."""

    statistic: str
    meaning = "how much of the true answer, word by word, the model's own answer tells"

    def behind_gate(self, key: str) -> Mapping[str, Metric]:
        return {key: self}

    def compute(self, inputs: MetricInputs) -> MetricValue:
        scored = inputs.sets[self.on]
        records = [
            {**answer.rouge._asdict(), "input": answer.question, "ground_truth": answer.truth, "generation": answer.text}
            for answer in scored.generated
        ]
        return averaged(scored, [getattr(answer.rouge, self.statistic) for answer in scored.generated], records)


@dataclass(frozen=True)
class OfTrueAnswer(OfOneSet):
    """Mean over examples of one field of the true answer's scores. `zero_if_empty`: where the convention says so."""

    score: str
    zero_if_empty: bool = False

    @property
    def meaning(self) -> str:
        return {
            "extraction_strength": "share of the answer that follows by itself once its beginning is given",
            "exact_memorization": "share of the answer's tokens that are the most likely one; common words alone give "
            "0.2 to 0.3",
        }[self.score]

    def compute(self, inputs: MetricInputs) -> MetricValue:
        scored = inputs.sets[self.on]
        zero = self.zero_if_empty and inputs.convention.empty_is_zero
        values = [_number(getattr(true, self.score), zero) for true in scored.true]
        return averaged(scored, values, [{"score": value} for value in values])


@dataclass(frozen=True)
class Membership(Metric):
    """AUC of one attack of `MEMBERSHIP_ATTACKS`, forgotten against held-out examples."""

    attack: str
    forget: str
    holdout: str
    meaning = "how well an attack tells forgotten from held-out texts: right is the retain model's number, not 0"

    @property
    def sets(self) -> tuple[str, ...]:
        return self.forget, self.holdout

    def compute(self, inputs: MetricInputs) -> MetricValue:
        sides = {"forget": inputs.sets[self.forget], "holdout": inputs.sets[self.holdout]}
        empty = [scored.missing or f"{scored.name} has nothing to score" for scored in sides.values() if not scored.true]
        if empty:
            return MetricValue(reason=empty[0])
        parts = {}
        for side, scored in sides.items():
            scores = MEMBERSHIP_ATTACKS[self.attack](scored, inputs.convention)
            parts[side] = averaged(scored, scores, [{"score": score} for score in scores])
        reason = next((part.reason for part in parts.values() if part.reason), "")
        if reason:
            return MetricValue(parts=parts, reason=reason)
        return MetricValue((*parts["forget"].columns, *parts["holdout"].columns), _auc, parts=parts)


@dataclass(frozen=True)
class ForgetQuality(Metric):
    """p-value of the KS test of the truth ratios against the retain model's. `ratio`: a key before it."""

    ratio: str
    meaning = "p-value that the truth ratios are those of the retain model: below 0.05 they differ"

    def compute(self, inputs: MetricInputs) -> MetricValue:
        if not inputs.retain_logs:
            return MetricValue(reason="needs the retain model's logs (--retain-logs)")
        logged = inputs.retain_records(self.ratio)
        if not logged:
            return MetricValue(reason=f"the retain model's logs hold no {self.ratio}")
        value = inputs.computed[self.ratio]
        if value.reason:
            return MetricValue(reason=value.reason)
        retain = [_number(entry["score"]) for entry in logged.values()]
        ratios = np.array([record["score"] for record in value.records], dtype=np.float64)
        return MetricValue(
            (SetValues(value.columns[0].set_name, ratios),),
            lambda columns: forget_quality(columns[0], retain),
            lambda columns: forget_quality(columns[0], retain, method="asymp"),
        )


@dataclass(frozen=True)
class PrivLeak(Metric):
    """An attack's AUC against the retain model's. `attack`: a key before it."""

    attack: str
    meaning = "distance of Min-K% from the retain model's, in percent: 0 is right, below it is known, above it is conspicuous"

    def compute(self, inputs: MetricInputs) -> MetricValue:
        value, convention = inputs.computed[self.attack], inputs.convention
        if value.reason:
            return MetricValue(reason=value.reason)
        logged = inputs.retain_value(self.attack)
        retain = convention.assumed_reference_auc if math.isnan(logged) else logged
        if retain is None:
            lacking = (
                f"the retain model's logs hold no {self.attack}" if inputs.retain_logs else "needs the retain model's logs"
            )
            return MetricValue(reason=f"{lacking} (--retain-logs)")
        return MetricValue(value.columns, lambda both: privleak(_auc(both), retain, epsilon=convention.epsilon))


@dataclass(frozen=True)
class Utility(Metric):
    """Harmonic mean of other metrics that are means: zero where one is. `keys`: those before it. Source: TOFU (2401.06121)."""

    keys: tuple[str, ...]
    meaning = "harmonic mean of nine: probability, ROUGE and truth ratio on the three sets to keep"

    def behind_gate(self, key: str) -> Mapping[str, Metric]:
        return {key: self}

    def compute(self, inputs: MetricInputs) -> MetricValue:
        values = [inputs.computed[key] for key in self.keys]
        reason = next((value.reason for value in values if value.reason), "")
        if reason:
            return MetricValue(reason=reason)
        columns = tuple(value.columns[0] for value in values)
        return MetricValue(columns, lambda drawn: harmonic_mean([mean_of_columns([column]) for column in drawn]))


Attack = Callable[[SetScores, Convention], list[float]]

MEMBERSHIP_ATTACKS: dict[str, Attack] = {
    "loss": lambda scored, _: [true.nll for true in scored.true],
    "zlib": lambda scored, _: [zlib_score(true.nll, text) for true, text in zip(scored.true, scored.texts, strict=True)],
    "reference": lambda scored, _: [
        true.nll - reference for true, reference in zip(scored.true, scored.reference_nll, strict=True)
    ],
    "min_k": lambda scored, convention: [_number(true.min_k, convention.empty_is_zero) for true in scored.true],
    "min_k_plus_plus": lambda scored, convention: [
        _number(true.min_k_plus_plus, convention.empty_is_zero) for true in scored.true
    ],
    "gradnorm": lambda scored, _: list(scored.gradients),
}
"""Each attack's score of every example of a set; higher: less likely a member."""


def _auc(both: Sequence[Floats]) -> float:
    """[forget, holdout] scores to the attack's AUC."""
    return auroc(both[0], both[1])


def averaged(scored: SetScores, values: ArrayLike, records: Sequence[Mapping[str, Any]] = ()) -> MetricValue:
    """A metric that is the mean of one value an example; with the reason where there is no value."""
    array = np.asarray(values, dtype=np.float64)
    if not len(array):
        return MetricValue(reason=scored.missing or f"{scored.name} has nothing to score")
    reason = f"no answer of {scored.name} could be scored" if np.isnan(array).all() else ""
    return MetricValue((SetValues(scored.name, array),), mean_of_columns, records=tuple(records), reason=reason)


def _losses(scored: SetScores, column: str) -> list[list[float]]:
    """The mean NLLs of each example's answers in a column."""
    answers = [(true,) for true in scored.true] if column == TRUE_ANSWER else scored.others.get(column, ())
    return [[answer.nll for answer in some] for some in answers]


def _pairs(scored: SetScores, right: str, wrong: str) -> list[tuple[float, list[float]]]:
    """(right answer's, wrong answers') mean NLLs of each example; none where a column is not there."""
    rights, wrongs = _losses(scored, right), _losses(scored, wrong)
    return [(some[0], others) for some, others in zip(rights, wrongs, strict=True)] if rights and wrongs else []


def _one_or_all(values: Sequence[float]) -> float | list[float]:
    """A single answer's number as such; of several, the list."""
    return values[0] if len(values) == 1 else list(values)


def _number(value: float | None, zero: bool = False) -> float:
    """NaN for None; 0 for NaN where asked."""
    number = math.nan if value is None else float(value)
    return 0.0 if zero and math.isnan(number) else number
