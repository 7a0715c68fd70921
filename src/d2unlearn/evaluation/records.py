"""The records of an evaluation, built in one place for rows of one's own, benchmarks and lm-eval's tasks. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from d2unlearn.config import BenchmarkSettings, EvaluateSettings
from d2unlearn.generation.guarded import Answer
from d2unlearn.metrics.text import leaked, token_entropy
from d2unlearn.outputs import kept_settings
from d2unlearn.schema import EvaluatedSet, Evaluation, Example, MetricResult, ScoredExample


class ReportedGate(Protocol):
    """What an evaluation reports of a gate or another guard: a request whose score exceeds the threshold is refused."""

    @property
    def score_name(self) -> str: ...
    @property
    def threshold(self) -> float: ...
    @property
    def max_false_refusal(self) -> float | None: ...


def evaluation_record(
    settings: EvaluateSettings | BenchmarkSettings,
    gate: ReportedGate | None,
    sets: Sequence[EvaluatedSet],
    separation: Sequence[MetricResult] = (),
) -> Evaluation:
    """The result file's content; a benchmark adds what it alone has."""
    return Evaluation(
        model=settings.model,
        label=settings.label or Path(settings.model).name,
        sets=tuple(sets),
        separation=tuple(separation),
        threshold=None if gate is None else gate.threshold,
        max_false_refusal=None if gate is None else gate.max_false_refusal,
        score_name=None if gate is None else gate.score_name,
        settings={**kept_settings(settings), "guarded": gate is not None},
    )


def scored_example(
    example: Example,
    scores: Mapping[str, float],
    *,
    raw_answer: str,
    guarded: Answer | None,
    prompt_energy: float,
    answer_energy: float,
) -> ScoredExample:
    """One example with what was answered; `guarded` is None without a gate."""
    return ScoredExample(
        example_id=example.example_id,
        question=example.question,
        answer=example.answer,
        raw_answer=raw_answer,
        guarded_answer=None if guarded is None else guarded.text,
        refused=None if guarded is None else guarded.refused,
        gate_score=None if guarded is None else guarded.score,
        prompt_energy=prompt_energy,
        answer_energy=answer_energy,
        scores=scores,
    )


def raw_scores(text: str | None, recall: float) -> dict[str, float]:
    """The metrics of a raw answer with that ROUGE-L recall; all NaN for none."""
    entropy = math.nan if text is None else token_entropy(text)
    return {"rouge_l_recall": recall, "leak_rate": leaked(recall), "token_entropy": entropy}


def guarded_scores(answer: Answer | None, recall: float) -> dict[str, float]:
    """The metrics of a guarded answer with that ROUGE-L recall; all NaN for none."""
    refused = math.nan if answer is None else float(answer.refused)
    return {"guarded_rouge_l_recall": recall, "guarded_leak_rate": leaked(recall), "guarded_refusal_rate": refused}
