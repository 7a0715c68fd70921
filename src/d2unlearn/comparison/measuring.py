"""What a trial is chosen by, measured: knowledge of raw weights, or of what a guarded model says, on validation questions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from d2unlearn.data.template import Template
from d2unlearn.evaluation.runner import Answers
from d2unlearn.metrics.memorization import answer_probability, extraction_strength
from d2unlearn.metrics.text import rouge_l_recall
from d2unlearn.schema import Example
from d2unlearn.teacher_forcing import score_rows

Means = dict[str, float]


def knowledge(guarded: Answers, rows: Sequence[Example], *, batch_size: int) -> Means:
    """Mean extraction strength and answer probability of the raw weights."""
    template = Template(guarded.tokenizer)
    held = score_rows(guarded.model, [template.tokens(row) for row in rows], batch_size=batch_size, name="validation")
    return {
        "extraction_strength": float(np.mean([extraction_strength(each.correct) for each in held])),
        "answer_probability": float(np.mean([answer_probability(each.nll) for each in held])),
    }


def told(guarded: Answers, rows: Sequence[Example], *, batch_size: int, max_new_tokens: int, raw: bool = False) -> Means:
    """Mean ROUGE-L recall of the answers, guarded unless `raw`."""
    prompts = [row.prompt for row in rows]
    answers = guarded.answer(prompts, max_new_tokens=max_new_tokens, batch_size=batch_size, raw=raw)
    scores = [rouge_l_recall(row.answer, answer.text) for row, answer in zip(rows, answers, strict=True)]
    return {"rouge_l_recall": float(np.mean(scores))}
