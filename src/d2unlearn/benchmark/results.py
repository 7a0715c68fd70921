"""From a scored suite to the content of our result file. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from d2unlearn.benchmark.metrics import MetricInputs, MetricValue, RougeScore, SetScores, Utility
from d2unlearn.benchmark.suites import Suite, sets_of
from d2unlearn.benchmark.warnings import cautions
from d2unlearn.config import BenchmarkSettings
from d2unlearn.gate import EnergyGate
from d2unlearn.generation.guarded import Answer
from d2unlearn.metrics.separation import separations
from d2unlearn.metrics.summary import GENERATED, GUARDED, LIKELIHOOD, groups_of, set_metric
from d2unlearn.metrics.text import Rouge, leaks, refuses, repetition, token_entropy
from d2unlearn.schema import EvaluatedSet, Evaluation, MetricResult, ScoredExample
from d2unlearn.stats import bootstrap_bounds

Overlap = Callable[[str, str], Rouge]
"""ROUGE of (truth, generated), as the suite and the convention count it."""
IN_WORDS = ("repetition", "refusal_rate")
"""Metrics of generated answers that a benchmark has beside those of `evaluate`."""
PREFIX = "guarded_"
"""Begins the name of a suite's metric that is taken of guarded answers."""


def evaluation_of(
    settings: BenchmarkSettings,
    suite: Suite,
    study: MetricInputs,
    gate: EnergyGate | None,
    guarded: Mapping[str, Sequence[Answer]],
    overlap: Overlap,
) -> Evaluation:
    """Our result file's content. guarded: each set's guarded answers; none for a set without."""
    there = [each for each in study.sets.values() if each.examples]
    behind = behind_gate(suite, study, guarded, overlap)
    sets = tuple(evaluated(suite, study, behind, each, guarded[each.name], settings.seed) for each in there)
    groups = {each.name: groups_of(each.examples) for each in there}
    return Evaluation(
        model=settings.model,
        label=settings.label or Path(settings.model).name,
        sets=sets,
        separation=tuple(separations(sets, settings.seed, groups)),
        threshold=None if gate is None else gate.threshold,
        max_false_refusal=None if gate is None else gate.max_false_refusal,
        score_name=None if gate is None else gate.score_name,
        settings={**asdict(settings), "guarded": gate is not None},
        benchmark=settings.benchmark,
        convention=study.convention.name,
        suite=(
            *(suite_metric(key, suite, study, settings.seed) for key in study.found),
            *(replace(suite_metric(key, suite, behind, settings.seed), name=f"{PREFIX}{key}") for key in behind.found),
        ),
        warnings=cautions(suite, study.found, sets, study.convention, study.reference),
    )


def behind_gate(suite: Suite, study: MetricInputs, guarded: Mapping[str, Sequence[Answer]], overlap: Overlap) -> MetricInputs:
    """What the suite says of guarded answers: its ROUGE, and utility with that ROUGE; nothing without a gate.

    A gate has no say in likelihoods, so metrics of those alone have no guarded counterpart; in the utility they are raw.
    """
    if not any(guarded.values()):
        return replace(study, found={})
    sets = {name: _told(scored, guarded.get(name, ()), overlap) for name, scored in study.sets.items()}
    behind, told = replace(study, sets=sets), dict[str, MetricValue]()
    for key, measure in suite.measures.items():
        if isinstance(measure, RougeScore | Utility):
            told[key] = measure.of(replace(behind, found={**study.found, **told}))
    return replace(behind, found=told)


def _told(scored: SetScores, answers: Sequence[Answer], overlap: Overlap) -> SetScores:
    """The set with guarded answers in the place of the raw ones."""
    if not answers:
        return scored
    texts = tuple(answer.text for answer in answers)
    return replace(
        scored, generated=texts, rouge=tuple(overlap(truth, text) for truth, text in zip(scored.truths, texts, strict=True))
    )


def suite_metric(key: str, suite: Suite, study: MetricInputs, seed: int) -> MetricResult:
    """One metric of the suite with its interval, over authors or documents where examples come in groups.

    n: examples of all sets that it is taken on and that could be scored whole; the others are counted as unscored.
    """
    finding = study.found[key]
    whole: dict[str, np.ndarray] = {}
    for column in finding.columns:
        whole[column.set_name] = whole.get(column.set_name, True) & ~np.isnan(column.values)
    n, total = int(sum(each.sum() for each in whole.values())), sum(len(each) for each in whole.values())
    low, high = _bounds(finding, study, seed)
    return MetricResult(key, finding.value, low, high, n, total - n, suite.measures[key].better, reason=finding.reason)


def evaluated(
    suite: Suite, study: MetricInputs, behind: MetricInputs, scored: SetScores, guarded: Sequence[Answer], seed: int
) -> EvaluatedSet:
    """One set: every example, and the metrics that `evaluate` takes of any set. behind: the study of guarded answers."""
    own = {
        key: finding.columns
        for key, finding in study.found.items()
        if scored.name in sets_of(suite.measures[key]) and not finding.reason
    }
    columns = {key: next(c.values for c in found if c.set_name == scored.name) for key, found in own.items()}
    examples = []
    for index in range(len(scored.examples)):
        answer = (guarded[index], behind.sets[scored.name].rouge[index]) if guarded else None
        further = {key: float(values[index]) for key, values in columns.items()}
        examples.append(_example(scored, index, answer, further))
    names = (*LIKELIHOOD, *((*GENERATED, *IN_WORDS) if scored.generated else ()), *(GUARDED if guarded else ()))
    groups = groups_of(scored.examples)
    metrics = (set_metric(name, scored.kind, [e.scores[name] for e in examples], groups, seed) for name in names)
    return EvaluatedSet(scored.name, scored.kind, tuple(metrics), tuple(examples))


def _example(
    scored: SetScores, index: int, guarded: tuple[Answer, Rouge] | None, further: Mapping[str, float]
) -> ScoredExample:
    """guarded: the answer behind the gate and its overlap with the truth; further: the values in the suite's own metrics."""
    example, true = scored.examples[index], scored.true[index]
    raw = scored.generated[index] if scored.generated else None
    scores = {
        "extraction_strength": true.extraction_strength,
        "exact_memorization": true.exact_memorization,
        "answer_probability": math.exp(-true.nll),
    }
    if raw is not None:
        scores |= {
            "rouge_l_recall": scored.rouge[index].rougeL_recall,
            "leak_rate": leaks(scored.rouge[index].rougeL_recall),
            "token_entropy": token_entropy(raw),
            "repetition": repetition(raw),
            "refusal_rate": refuses(raw),
        }
    answer: Answer | None = None
    if guarded is not None:
        answer, told = guarded
        scores |= {
            "guarded_rouge_l_recall": told.rougeL_recall,
            "guarded_leak_rate": leaks(told.rougeL_recall),
            "guarded_refusal_rate": float(answer.refused),
        }
    return ScoredExample(
        example_id=example.example_id,
        question=example.question,
        answer=example.answer,
        raw_answer=raw or "",
        guarded_answer=None if answer is None else answer.text,
        refused=None if answer is None else answer.refused,
        gate_score=None if answer is None else answer.score,
        prompt_energy=true.prompt_energy,
        answer_energy=true.answer_energy,
        scores={**scores, **further},
    )


def _bounds(finding: MetricValue, study: MetricInputs, seed: int) -> tuple[float, float]:
    statistic = finding.quick or finding.aggregate
    if statistic is None:
        return math.nan, math.nan
    groups = {}
    for name in {column.set_name for column in finding.columns}:
        examples = study.sets[name].examples
        groups[name] = groups_of(examples) or [str(index) for index in range(len(examples))]
    columns = [(column.set_name, column.values) for column in finding.columns]
    return bootstrap_bounds(statistic, columns, groups, seed=seed)
