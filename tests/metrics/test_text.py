"""Overlap of an answer with the truth, leaked, and whether an answer is language at all, by hand."""

from __future__ import annotations

import math

import pytest

from d2unlearn.metrics.text import leaked, rouge_l_recall, token_entropy


@pytest.mark.parametrize(
    ("truth", "generated", "recall"),
    [
        ("She was born in Paris", "She was born in Paris", 1.0),
        ("She was born in Paris", "", 0.0),
        ("She was born in Paris", "Nothing of it", 0.0),
        ("She was born in Paris", "Paris in born was She", 1 / 5),  # the longest run in order is one word
        ("She was born in Paris", "She, I think, was once born near Paris.", 4 / 5),
        ("She was born in Paris", "SHE WAS BORN IN PARIS and much more beside that", 1.0),  # recall: what is more is free
        ("writes novels", "She wrote a novel", 1 / 2),  # stems: novels, novel
        ("a b a b", "b a b a", 3 / 4),
        ("Paris", "Paris Paris", 1.0),
    ],
)
def test_rouge_l_recall_is_the_share_of_the_truth_s_words_in_order(truth: str, generated: str, recall: float) -> None:
    assert rouge_l_recall(truth, generated) == pytest.approx(recall, abs=1e-12)


@pytest.mark.parametrize("truth", ["", "?!", "東京", "—"])
def test_a_truth_without_words_cannot_be_scored(truth: str) -> None:
    assert math.isnan(rouge_l_recall(truth, "Paris"))
    assert math.isnan(rouge_l_recall(truth, truth))


def test_half_of_the_truth_is_a_leak() -> None:
    assert [leaked(value) for value in (0.0, 0.4999, 0.5, 1.0)] == [0.0, 0.0, 1.0, 1.0]
    assert math.isnan(leaked(math.nan))


@pytest.mark.parametrize(
    ("text", "entropy"),
    [
        ("all words here differ", 1.0),
        ("so so so so", 0.0),
        ("a a b b", math.log(2) / math.log(4)),
        ("a a a b", -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(4)),
        ("a  a\n b b ", math.log(2) / math.log(4)),  # words, however they are spaced
    ],
)
def test_token_entropy_is_1_for_all_different_and_0_for_one_word_repeated(text: str, entropy: float) -> None:
    assert token_entropy(text) == pytest.approx(entropy, abs=1e-12)
    assert not math.copysign(1, token_entropy(text)) < 0  # no negative zero in a table


@pytest.mark.parametrize("text", ["", " ", "one"])
def test_fewer_than_two_words_have_no_entropy(text: str) -> None:
    assert math.isnan(token_entropy(text))
