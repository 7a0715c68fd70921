"""What a model still holds of an answer, worked by hand on a few tokens."""

from __future__ import annotations

import itertools
import math

import pytest

from d2unlearn.metrics.memorization import answer_probability, exact_memorization, extraction_strength


@pytest.mark.parametrize(
    ("correct", "strength", "exact"),
    [
        ([True, True, True, True], 1.0, 1.0),  # nothing has to be given
        ([False, True, True, True], 0.75, 0.75),  # the first token given, the rest follows
        ([True, True, False, True], 0.25, 0.75),  # three of four have to be given
        ([True, True, True, False], 0.0, 0.75),  # all but the end is right, and the end is never reached
        ([False, False, False, True], 0.25, 0.25),
        ([False, False, False, False], 0.0, 0.0),
        ([True], 1.0, 1.0),
        ([False], 0.0, 0.0),
    ],
)
def test_extraction_strength_counts_what_must_be_given_and_exact_memorization_what_is_right(
    correct: list[bool], strength: float, exact: float
) -> None:
    assert extraction_strength(correct) == strength
    assert exact_memorization(correct) == exact


def naive_strength(correct: list[bool]) -> float:
    """The definition: the shortest prefix after which every token is right."""
    n = len(correct)
    return max((1 - k / n for k in range(n + 1) if all(correct[k:])), default=0.0)


def test_extraction_strength_is_its_definition_on_every_answer_of_up_to_six_tokens() -> None:
    for n in range(1, 7):
        for pattern in itertools.product([False, True], repeat=n):
            assert extraction_strength(pattern) == pytest.approx(naive_strength(list(pattern)), abs=1e-12)
            assert extraction_strength(pattern) <= exact_memorization(pattern) + 1e-12


def test_answer_probability_is_the_geometric_mean_of_the_tokens_probabilities() -> None:
    probabilities = [0.5, 0.25, 0.8]
    nll = [-math.log(p) for p in probabilities]
    assert answer_probability(nll) == pytest.approx((0.5 * 0.25 * 0.8) ** (1 / 3), rel=1e-12)
    assert answer_probability([0.0, 0.0]) == 1.0
    assert answer_probability([1e4]) == 0.0
    assert answer_probability([math.inf, 0.0]) == 0.0


def test_nothing_to_score_is_nan_and_not_forgotten() -> None:
    assert math.isnan(extraction_strength([]))
    assert math.isnan(exact_memorization([]))
    assert math.isnan(answer_probability([]))
