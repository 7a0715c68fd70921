"""How likely a model finds the true answers, as attacks read it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from d2unlearn.attacks.reading import AskedRows, Reading, Setting, reading_of
from d2unlearn.metrics.memorization import answer_probability
from d2unlearn.teacher_forcing import score_rows


def probabilities(model: nn.Module, asked: AskedRows, setting: Mapping[str, Setting], *, batch_size: int = 32) -> Reading:
    """The answer probability of every row, teacher-forced."""
    scores = score_rows(model, asked.tokens, batch_size=batch_size)
    return reading_of(asked, setting, "answer_probability", [answer_probability(row.nll) for row in scores])
