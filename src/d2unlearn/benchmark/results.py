"""From a scored suite to the content of our result file. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from d2unlearn.benchmark.metrics import MetricInputs, MetricValue, SetScores
from d2unlearn.benchmark.suites import Suite
from d2unlearn.benchmark.warnings import suite_warnings
from d2unlearn.config import BenchmarkSettings
from d2unlearn.evaluation.records import ReportedGate, evaluation_record, guarded_scores, raw_scores, scored_example
from d2unlearn.metrics.separation import separation_of_sets
from d2unlearn.metrics.summary import GENERATED_METRICS, GUARDED_METRICS, LIKELIHOOD_METRICS, groups_of, set_metric
from d2unlearn.metrics.text import refuses, repetition
from d2unlearn.schema import GUARDED_PREFIX, EvaluatedSet, Evaluation, MetricResult, ScoredExample
from d2unlearn.stats import bootstrap_bounds

SUITE_DRAWS = 300
"""Draws for an interval."""
IN_WORDS = ("repetition", "refusal_rate")
"""Metrics of generated answers that a benchmark has beside those of `evaluate`."""


def benchmark_evaluation(
    settings: BenchmarkSettings, suite: Suite, inputs: MetricInputs, gate: ReportedGate | None
) -> Evaluation:
    """Our result file's content. inputs: with every metric of the suite computed."""
    seed = settings.seed
    groups = {name: groups_of(scored.examples) for name, scored in inputs.sets.items()}
    sets = [evaluated_set(suite, inputs, scored, seed) for scored in inputs.sets.values() if scored.examples]
    by_name = {evaluated.name: evaluated for evaluated in sets}
    pairs = [[by_name[name] for name in pair if name in by_name] for pair in suite.compared] or [sets]
    separation = [metric for pair in pairs for metric in separation_of_sets(pair, seed, groups)]
    told = guarded_suite(suite)
    behind = behind_gate(told, inputs)
    guarded = [replace(suite_metric(key, told, behind, seed), name=f"{GUARDED_PREFIX}{key}") for key in behind.computed]
    return replace(
        evaluation_record(settings, gate, sets, separation),
        benchmark=settings.benchmark,
        convention=inputs.convention.name,
        suite=(*(suite_metric(key, suite, inputs, seed) for key in inputs.computed), *guarded),
        warnings=suite_warnings(suite, inputs, sets),
    )


def guarded_suite(suite: Suite) -> Suite:
    """The suite's metrics that a gate has a say in, as they are of guarded answers. Metrics of likelihoods alone are none."""
    metrics = {name: behind for key, metric in suite.metrics.items() for name, behind in metric.behind_gate(key).items()}
    return replace(suite, metrics=metrics)


def behind_gate(suite: Suite, inputs: MetricInputs) -> MetricInputs:
    """What the suite of `guarded_suite` says of guarded answers; nothing without a gate. In its means likelihoods are raw."""
    if not any(scored.guarded for scored in inputs.sets.values()):
        return replace(inputs, computed={})
    sets = {name: replace(scored, generated=scored.guarded or scored.generated) for name, scored in inputs.sets.items()}
    computed = dict[str, MetricValue]()
    for key, metric in suite.metrics.items():
        computed[key] = metric.compute(replace(inputs, sets=sets, computed={**inputs.computed, **computed}))
    return replace(inputs, sets=sets, computed=computed)


def suite_metric(key: str, suite: Suite, inputs: MetricInputs, seed: int) -> MetricResult:
    """One metric of the suite with its interval, over authors or documents where examples come in groups.

    n: examples of all sets that it is taken on and that could be scored whole; the others are counted as unscored.
    """
    value = inputs.computed[key]
    whole: dict[str, np.ndarray] = {}
    for column in value.columns:
        whole[column.set_name] = whole.get(column.set_name, True) & ~np.isnan(column.values)
    n, total = int(sum(map(np.sum, whole.values()))), sum(map(len, whole.values()))
    low, high = _bounds(value, inputs, seed)
    return MetricResult(key, value.value, low, high, n, total - n, suite.metrics[key].better, reason=value.reason)


def evaluated_set(suite: Suite, inputs: MetricInputs, scored: SetScores, seed: int) -> EvaluatedSet:
    """One set: every example, and the metrics that `evaluate` takes of any set."""
    own = {
        key: next(column.values for column in value.columns if column.set_name == scored.name)
        for key, value in inputs.computed.items()
        if scored.name in suite.metrics[key].sets and not value.reason
    }
    examples = [
        _example(scored, index, {key: float(values[index]) for key, values in own.items()})
        for index in range(len(scored.examples))
    ]
    generated = (*GENERATED_METRICS, *IN_WORDS) if scored.generated else ()
    names = (*LIKELIHOOD_METRICS, *generated, *(GUARDED_METRICS if scored.guarded else ()))
    groups = groups_of(scored.examples)
    metrics = (set_metric(name, scored.kind, [e.scores[name] for e in examples], groups, seed) for name in names)
    return EvaluatedSet(scored.name, scored.kind, tuple(metrics), tuple(examples))


def _example(scored: SetScores, index: int, own: Mapping[str, float]) -> ScoredExample:
    """own: the example's values in the suite's metrics."""
    true = scored.true[index]
    scores = {
        "extraction_strength": true.extraction_strength,
        "exact_memorization": true.exact_memorization,
        "answer_probability": math.exp(-true.nll),
    }
    raw = scored.generated[index] if scored.generated else None
    if raw is not None:
        scores |= raw_scores(raw.text, raw.rouge.rougeL_recall)
        scores |= {"repetition": repetition(raw.text), "refusal_rate": refuses(raw.text)}
    decision = scored.decisions[index] if scored.decisions else None
    if decision is not None:
        scores |= guarded_scores(decision, scored.guarded[index].rouge.rougeL_recall)
    return scored_example(
        scored.examples[index],
        {**scores, **own},
        raw_answer="" if raw is None else raw.text,
        guarded=decision,
        prompt_energy=true.prompt_energy,
        answer_energy=true.answer_energy,
    )


def _bounds(value: MetricValue, inputs: MetricInputs, seed: int) -> tuple[float, float]:
    statistic = value.quick or value.aggregate
    if statistic is None:
        return math.nan, math.nan
    groups = {}
    for name in {column.set_name for column in value.columns}:
        examples = inputs.sets[name].examples
        groups[name] = groups_of(examples) or [str(index) for index in range(len(examples))]
    columns = [(column.set_name, column.values) for column in value.columns]
    return bootstrap_bounds(statistic, columns, groups, n_boot=SUITE_DRAWS, seed=seed)
