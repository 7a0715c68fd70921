"""What a generated answer is worth: overlap with the truth, and whether it is language at all. Pure functions of text."""

from __future__ import annotations

import math
from collections import Counter
from functools import lru_cache
from typing import Any

LEAK = 0.5
"""A generated answer that holds at least this much of the truth (ROUGE-L recall) counts as leaking it."""


def rouge_l_recall(answer: str, generated: str) -> float:
    """Longest common subsequence of words over the truth's words, 0 to 1. NaN when the truth has no words.

    Source: Lin 2004; `rouge-score` with stemming, as open-unlearning calls it.
    """
    score = _scorer().score(answer, generated)["rougeL"]
    return float(score.recall) if _scorer().score(answer, answer)["rougeL"].recall else math.nan


def token_entropy(generated: str) -> float:
    """Entropy of the answer's words over its largest possible value: 1 for all different, near 0 for one word repeated.

    NaN for fewer than two words. Source: Yuan et al. 2024 (2410.08109), normalised unigram entropy.
    """
    words = generated.split()
    if len(words) < 2:
        return math.nan
    shares = [count / len(words) for count in Counter(words).values()]
    return -sum(p * math.log(p) for p in shares) / math.log(len(words)) + 0.0


def leaks(rouge: float) -> float:
    """1 when the answer gives the truth away (`rouge` at least 0.5), else 0; NaN stays NaN."""
    return math.nan if math.isnan(rouge) else float(rouge >= LEAK)


@lru_cache(maxsize=1)
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)
