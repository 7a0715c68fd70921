"""What a generated answer is worth: overlap with the truth, and whether it is language at all. Pure functions of text."""

from __future__ import annotations

import math
import re
from collections import Counter
from functools import lru_cache
from typing import Any, NamedTuple

from d2unlearn.refusals import REFUSAL_BEGINNINGS

LEAKED_FROM = 0.5
"""A generated answer that holds at least this much of the truth (ROUGE-L recall) counts as leaking it."""
WORD = re.compile("[a-z0-9]")
"""What a word of `rouge-score` is made of, after lower-casing."""
WINDOW = 3
"""Words of the runs that `repetition` counts."""


class Rouge(NamedTuple):
    """Overlap of a generated answer with the truth, each 0 to 1. The names are open-unlearning's."""

    rouge1_recall: float
    rougeL_f1: float
    rougeL_recall: float


NO_ROUGE = Rouge(math.nan, math.nan, math.nan)


def rouge(answer: str, generated: str, *, stemmer: bool = True) -> Rouge:
    """ROUGE-1 recall, ROUGE-L F1 and recall, by the package `rouge-score`; words without letters or digits do not count.

    `stemmer` on: as open-unlearning; off: as MUSE's authors. All NaN when the truth has no words. Source: Lin 2004.
    """
    if not WORD.search(answer.lower()):
        return NO_ROUGE
    if generated == answer:
        return Rouge(1.0, 1.0, 1.0)
    scores = _scorer(stemmer).score(answer, generated)
    return Rouge(float(scores["rouge1"].recall), float(scores["rougeL"].fmeasure), float(scores["rougeL"].recall))


def rouge_l_recall(answer: str, generated: str) -> float:
    """Longest common subsequence of words over the truth's words, 0 to 1. NaN when the truth has no words.

    Source: Lin 2004; `rouge-score` with stemming, as open-unlearning calls it.
    """
    return rouge(answer, generated).rougeL_recall


def exact_match(answer: str, generated: str) -> float:
    """1 when an answer is the truth to the letter, letter case and outer white space aside, else 0."""
    return float(answer.strip().lower() == generated.strip().lower())


def token_entropy(generated: str) -> float:
    """Entropy of the answer's words over its largest possible value: 1 for all different, near 0 for one word repeated.

    NaN for fewer than two words. Source: Yuan et al. 2024 (2410.08109), normalised unigram entropy.
    """
    words = generated.split()
    if len(words) < 2:
        return math.nan
    shares = [count / len(words) for count in Counter(words).values()]
    return -sum(p * math.log(p) for p in shares) / math.log(len(words)) + 0.0


def leaked(recall: float) -> float:
    """1 when an answer with that ROUGE-L recall gives the truth away (at least 0.5), else 0; NaN stays NaN."""
    return math.nan if math.isnan(recall) else float(recall >= LEAKED_FROM)


def repetition(generated: str) -> float:
    """Share of the answer's runs of three words that occurred before in it: 0 for none, near 1 for a loop.

    NaN for fewer words than a run has.
    """
    words = generated.split()
    runs = [tuple(words[i : i + WINDOW]) for i in range(len(words) - WINDOW + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else math.nan


def refuses(generated: str) -> float:
    """1 when the answer begins like a refusal, else 0: for models that were trained to refuse in words."""
    start = " ".join(generated.replace("\u2019", "'").lower().split())
    return float(start.startswith(REFUSAL_BEGINNINGS))


@lru_cache(maxsize=2)
def _scorer(stemmer: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rougeL"], use_stemmer=stemmer)
