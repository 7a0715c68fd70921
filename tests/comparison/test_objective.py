"""What trials are chosen by, by hand; what it does not look at."""

from __future__ import annotations

import math

import pytest

from d2unlearn.comparison.objective import OBJECTIVE, best_trial, validation_score

BEFORE = {"extraction_strength": 0.8, "answer_probability": 0.5}


def test_the_score_is_the_harmonic_mean_of_erased_and_kept() -> None:
    """Erased 1 - 0.4, kept the smaller of 0.6 / 0.8 and 0.45 / 0.5: 2 / (1 / 0.6 + 1 / 0.75)."""
    forget = {"extraction_strength": 0.1, "answer_probability": 0.4}
    retain = {"extraction_strength": 0.6, "answer_probability": 0.45}
    assert validation_score(forget, retain, BEFORE) == pytest.approx(2 / (1 / 0.6 + 1 / 0.75))


def test_neither_a_broken_model_nor_one_that_forgot_nothing_scores() -> None:
    nothing = {"extraction_strength": 0.0, "answer_probability": 0.0}
    everything = {"extraction_strength": 1.0, "answer_probability": 0.9}
    assert validation_score(nothing, nothing, BEFORE) == 0.0
    assert validation_score(everything, BEFORE, BEFORE) == 0.0
    assert validation_score(nothing, BEFORE, BEFORE) == 1.0
    assert validation_score(nothing, everything, BEFORE) == 1.0  # more than was known counts as all of it


@pytest.mark.parametrize("side", [0, 1, 2])
def test_no_numbers_no_score(side: int) -> None:
    sides = [dict(BEFORE), dict(BEFORE), dict(BEFORE)]
    sides[side]["answer_probability"] = math.nan
    assert validation_score(sides[0], sides[1], sides[2]) == 0.0


def test_other_metrics_on_one_side_are_an_error() -> None:
    with pytest.raises(ValueError, match="different metrics"):
        validation_score({"extraction_strength": 0.1}, BEFORE, BEFORE)


def test_of_equal_trials_the_first_is_chosen() -> None:
    assert best_trial([0.2, 0.9, 0.9, 0.1]) == 1
    assert best_trial([0.0, 0.0]) == 0


def test_the_objective_is_stated_and_names_no_energy_gate_or_refusal() -> None:
    assert {"erased", "kept", "validation"} <= set(OBJECTIVE.replace(",", " ").split())
    assert not {"energy", "gate", "refusal", "AUROC"} & set(OBJECTIVE.split())
