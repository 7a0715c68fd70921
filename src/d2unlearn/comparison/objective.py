"""What trials are chosen by: knowledge on validation questions. No energy, no gate and no refusal enters it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from d2unlearn.data.template import Template
from d2unlearn.evaluation.runner import Answers
from d2unlearn.metrics.memorization import answer_probability, extraction_strength
from d2unlearn.metrics.text import rouge_l_recall
from d2unlearn.schema import Example
from d2unlearn.stats import harmonic_mean
from d2unlearn.teacher_forcing import score_rows

OBJECTIVE = (
    "harmonic mean of erased and kept on validation questions, in the raw weights: erased = 1 - the larger of extraction "
    "strength and answer probability on forgotten rows; kept = the smaller share of the original's extraction strength and "
    "answer probability that is left on retained rows that training never saw. For guards, which leave the weights alone, both "
    "are taken of what the guarded model says: ROUGE-L recall of its answers"
)
Means = Mapping[str, float]
"""MetricResult -> mean over rows."""


def validation_score(forget: Means, retain: Means, before: Means) -> float:
    """The objective, 0 to 1. Arguments: the same metrics in all three; `before`: the original's, on retained rows.

    0 for a model that gives no numbers. Raises `ValueError` for other metrics on one side than on another.
    """
    if not set(forget) == set(retain) == set(before):
        raise ValueError(f"different metrics: {sorted(forget)}, {sorted(retain)}, {sorted(before)}")
    if any(math.isnan(value) for means in (forget, retain, before) for value in means.values()):
        return 0.0
    erased = 1 - max(forget.values())
    kept = min(min(1.0, value / max(before[name], 1e-12)) for name, value in retain.items())
    return harmonic_mean([erased, kept])


def best_trial(scores: Sequence[float]) -> int:
    """The number of the trial with the largest score, the first of equals."""
    return max(range(len(scores)), key=lambda number: (scores[number], -number))


def knowledge(guarded: Answers, rows: Sequence[Example], *, batch_size: int) -> Means:
    """Mean extraction strength and answer probability of the raw weights."""
    template = Template(guarded.tokenizer)
    scored = score_rows(guarded.model, [template.tokens(row) for row in rows], batch_size=batch_size, name="validation")
    return {
        "extraction_strength": float(np.mean([extraction_strength(row.correct) for row in scored])),
        "answer_probability": float(np.mean([answer_probability(row.nll) for row in scored])),
    }


def guarded_rouge(
    guarded: Answers, rows: Sequence[Example], *, batch_size: int, max_new_tokens: int, raw: bool = False
) -> Means:
    """Mean ROUGE-L recall of the answers, guarded unless `raw`."""
    prompts = [row.prompt for row in rows]
    answers = guarded.answer(prompts, max_new_tokens=max_new_tokens, batch_size=batch_size, raw=raw)
    scores = [rouge_l_recall(row.answer, answer.text) for row, answer in zip(rows, answers, strict=True)]
    return {"rouge_l_recall": float(np.mean(scores))}
