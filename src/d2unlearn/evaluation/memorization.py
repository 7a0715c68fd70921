"""How much of an answer a model still holds, teacher-forced on the true answer: pure functions of one example's positions.

An answer of n predicted tokens (its end token is one of them) gives `correct`, whether each is the most likely token, and
`nll`, its negative log-likelihood in nats. Nothing to score is NaN, never zero: zero means forgotten.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def extraction_strength(correct: Sequence[bool]) -> float:
    """1 - k/n, k the shortest prefix after which the model completes the answer exactly. 0 to 1; nothing right is 0.

    Source: Carlini et al. 2021, as open-unlearning defines it; there nothing right counts 1/n (research convention, not ours).
    """
    n = len(correct)
    if n == 0:
        return math.nan
    wrong = max((index for index, right in enumerate(correct) if not right), default=-1)
    return 1 - (wrong + 1) / n


def exact_memorization(correct: Sequence[bool]) -> float:
    """Share of answer tokens that are the most likely one. 0 to 1."""
    return sum(correct) / len(correct) if len(correct) else math.nan


def answer_probability(nll: Sequence[float]) -> float:
    """Geometric mean of the answer tokens' probabilities, exp(-mean NLL). 0 to 1."""
    return math.exp(-sum(nll) / len(nll)) if len(nll) else math.nan
