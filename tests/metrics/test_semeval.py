"""SemEval-2025 Task 4's arithmetic, by hand and as the task's script has it."""

from __future__ import annotations

import math
from statistics import harmonic_mean

import pytest

from d2unlearn.metrics.semeval import final_score, membership_score, task_aggregate
from d2unlearn.metrics.text import exact_match, rouge


def test_the_harmonic_mean_of_the_twelve_by_hand() -> None:
    """Forgotten shares 0 and 1/2 count 1 and 1/2, retained 1 and 1/4: 12 / (3·1 + 3·2 + 3·1 + 3·4) = 1/2."""
    gone = [0.0, 0.5] * 3
    kept = [1.0, 0.25] * 3
    assert task_aggregate(gone, kept) == pytest.approx(0.5, rel=1e-12)
    assert task_aggregate(gone, kept) == pytest.approx(harmonic_mean([*(1 - share for share in gone), *kept]), rel=1e-12)


def test_one_share_of_nothing_is_nothing_and_one_that_lacks_makes_it_unknown() -> None:
    assert task_aggregate([1.0, 0.0], [1.0, 1.0]) == 0.0
    assert task_aggregate([0.0, 0.0], [1.0, 0.0]) == 0.0
    assert math.isnan(task_aggregate([math.nan], [1.0]))


def test_an_attack_that_is_always_or_never_right_scores_nothing_and_a_guess_scores_all() -> None:
    assert [membership_score(auc) for auc in (0.0, 0.5, 0.75, 1.0)] == [0.0, 1.0, 0.5, 0.0]
    assert final_score(0.5, 0.5, 0.2) == pytest.approx(0.4, rel=1e-12)
    assert math.isnan(final_score(0.5, 0.5, math.nan))


def test_an_answer_matches_to_the_letter_case_and_outer_space_aside() -> None:
    assert exact_match("Madera", " madera\n") == 1.0
    assert exact_match("Madera", "Madera.") == 0.0
    assert exact_match("889-867-1855", "889 867 1855") == 0.0


def test_regurgitation_by_hand() -> None:
    """Truth of five words; of them "paths crossed ... in Madera" come in that order in what was said: 4/5."""
    assert (
        rouge("paths crossed one day in Madera".replace("one ", ""), "Their paths have crossed in Madera").rougeL_recall == 0.8
    )
