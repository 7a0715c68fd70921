"""How likely an answer is to one who has only read others: an interpolated trigram model of the retained answers' tokens.

What such a model says of a forgotten answer (its grammar, its commonest words) is no knowledge of it. Pure.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from d2unlearn.schema import Tokens

_WEIGHTS = (0.14, 0.30, 0.55)
"""Of the token alone, after one token, after two; the rest is even over the vocabulary."""
LOWEST, HIGHEST = -7.0, -0.7
"""Nats between which a cap lies."""

Ngram = tuple[int, ...]


class NgramModel(NamedTuple):
    """Counts of n-grams, and of their contexts (the n-gram without its last token), for n = 1, 2, 3."""

    ngrams: Counter[Ngram]
    contexts: Counter[Ngram]
    vocab_size: int

    def probability(self, before: Sequence[int], token: int) -> float:
        """Of a token after those before it; a context that was never seen gives its weight to none."""
        even = (1 - sum(_WEIGHTS)) / self.vocab_size
        return even + sum(
            weight * self.ngrams[(*context, token)] / seen
            for weight, context in zip(_WEIGHTS, _contexts(before), strict=False)
            if (seen := self.contexts[context])
        )

    def caps(self, row: Tokens) -> list[float]:
        """The log probability of each answer token, within `LOWEST` and `HIGHEST`, nats."""
        found = (math.log(self.probability(row.input_ids[max(0, at - 2) : at], row.input_ids[at])) for at in answer_places(row))
        return [min(max(value, LOWEST), HIGHEST) for value in found]


def ngram_model(rows: Sequence[Tokens], vocab_size: int) -> NgramModel:
    """Counted on the rows' answers; what comes before an answer counts as context of its first tokens."""
    ngrams, contexts = Counter[Ngram](), Counter[Ngram]()
    for row in rows:
        for at in answer_places(row):
            for context in _contexts(row.input_ids[max(0, at - 2) : at]):
                ngrams[(*context, row.input_ids[at])] += 1
                contexts[context] += 1
    return NgramModel(ngrams, contexts, vocab_size)


def answer_places(row: Tokens) -> list[int]:
    """Where the row's answer tokens stand that a model predicts: all but one that begins the row."""
    return [at for at, answer in enumerate(row.answer_mask) if answer and at]


def _contexts(before: Sequence[int]) -> Iterator[Ngram]:
    """The last 0, 1, 2 tokens, as far as there are so many."""
    for length in range(min(len(before), len(_WEIGHTS) - 1) + 1):
        yield tuple(before[len(before) - length :])
