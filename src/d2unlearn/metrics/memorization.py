"""How much of an answer a model still holds, teacher-forced on the true answer: pure functions of one example's positions.

An answer of n predicted tokens (its end token is one of them, unless the caller leaves it out) gives `correct`, whether each is
the most likely token, and `nll`, its negative log-likelihood in nats. Nothing to score is NaN, not zero: zero means forgotten.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

LARGEST_EXPONENT = 700.0
"""exp of more than that is no double any more; a ratio stays finite, and its inverse positive."""


def extraction_strength(correct: Sequence[bool], *, floor: bool = False) -> float:
    """1 - k/n, k the shortest prefix after which the model completes the answer exactly. 0 to 1; nothing right is 0.

    The end token is one of the n: a model that says the whole answer and then goes on has an extraction strength of 0.

    `floor`: nothing right counts 1/n, as a right last token does (open-unlearning). Source: Carlini et al. 2021, as
    open-unlearning defines it.
    """
    n = len(correct)
    if n == 0:
        return math.nan
    wrong = max((index for index, right in enumerate(correct) if not right), default=-1)
    return 1 - min(wrong + 1, n - 1 if floor else n) / n


def exact_memorization(correct: Sequence[bool]) -> float:
    """Share of answer tokens that are the most likely one. 0 to 1."""
    return sum(correct) / len(correct) if len(correct) else math.nan


def answer_probability(nll: Sequence[float]) -> float:
    """Geometric mean of the answer tokens' probabilities, exp(-mean NLL). 0 to 1."""
    return math.exp(-sum(nll) / len(nll)) if len(nll) else math.nan


def option_probability(right: float, wrong: Sequence[float], *, epsilon: float = 0.0) -> float:
    """The true answer's share of all options' probabilities, p / (p + sum of wrong p + epsilon). 0 to 1.

    right, wrong: each answer's mean NLL, p = exp(-NLL). Without `epsilon` it is a softmax, exact however small all p are.
    """
    if math.isnan(right) or not len(wrong) or any(map(math.isnan, wrong)):
        return math.nan
    if epsilon:
        p = math.exp(-right)
        return p / (p + sum(math.exp(-nll) for nll in wrong) + epsilon)
    return 1 / (1 + sum(_exp(right - nll) for nll in wrong))


def truth_ratio(right: float, wrong: Sequence[float], *, epsilon: float = 0.0) -> float:
    """Wrong answers' probability over the right answer's, exp(right - mean wrong). Positive; 1: told apart by nothing.

    right, wrong: mean NLLs; several wrong answers count with the geometric mean of their probabilities, as in TOFU's code
    (its paper writes the arithmetic mean). `epsilon` is added to the right answer's probability (open-unlearning: 1e-10), which
    pulls the ratio to 0 where both answers are less likely than that.
    """
    if math.isnan(right) or not len(wrong) or any(map(math.isnan, wrong)):
        return math.nan
    mean = sum(wrong) / len(wrong)
    return math.exp(-mean) / (math.exp(-right) + epsilon) if epsilon else _exp(right - mean)


def closer_to_one(ratio: float, *, epsilon: float = 0.0) -> float:
    """min(r, 1/r): 1 when right and wrong answers are equally likely, as for a model that never knew. For forget sets."""
    return min(ratio, 1 / (ratio + epsilon)) if ratio or epsilon else ratio


def true_better(ratio: float, *, epsilon: float = 0.0) -> float:
    """max(0, 1 - r): 1 when only the right answer is likely. For sets to keep. `epsilon` plays no part."""
    return math.nan if math.isnan(ratio) else max(0.0, 1 - ratio)


TRUTH_AGGREGATORS: Mapping[str, Callable[..., float]] = {"closer_to_1_better": closer_to_one, "true_better": true_better}
"""What the mean over questions is of, by open-unlearning's names: a function of one question's truth ratio."""


def _exp(value: float) -> float:
    return math.exp(max(-LARGEST_EXPONENT, min(value, LARGEST_EXPONENT)))
