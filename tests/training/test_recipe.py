"""The automatic rate and batch: the models it was set by, what lies between and beyond, and adapters."""

from __future__ import annotations

import math

import pytest

from d2unlearn.training.recipe import automatic_accumulation, automatic_epochs, automatic_learning_rate


@pytest.mark.parametrize(
    ("parameters", "rate"),
    [(10**9, 1e-5), (4_200_000, 3e-4), (1_100_000, 5e-4), (7 * 10**9, 1e-5), (10**12, 1e-5), (1000, 5e-4), (0, 5e-4)],
)
def test_it_runs_through_its_anchors_and_stays_between_them(parameters: int, rate: float) -> None:
    assert automatic_learning_rate(parameters, lora=False) == rate


def test_between_them_it_is_a_straight_line_in_logarithms() -> None:
    """Half-way between 4.2e6 and 1e9 parameters stands the geometric mean of 3e-4 and 1e-5, 5.48e-5."""
    assert automatic_learning_rate(round(math.sqrt(4.2e6 * 1e9)), lora=False) == 5.5e-5


def test_a_larger_model_never_gets_a_larger_rate() -> None:
    for lora in (False, True):
        rates = [automatic_learning_rate(round(10 ** (exponent / 10)), lora=lora) for exponent in range(40, 120)]
        assert rates == sorted(rates, reverse=True)
        assert len(set(rates)) > 20


@pytest.mark.parametrize(("parameters", "rate"), [(10**9, 1e-4), (10**8, 4.2e-4), (4_200_000, 3e-3)])
def test_an_adapter_gets_ten_times_the_rate_up_to_a_bound(parameters: int, rate: float) -> None:
    assert automatic_learning_rate(parameters, lora=True) == rate
    assert automatic_learning_rate(parameters, lora=True) <= 10 * automatic_learning_rate(parameters, lora=False) * 1.05


@pytest.mark.parametrize(("parameters", "batches"), [(10**12, 4), (10**9, 4), (65_000_000, 2), (4_200_000, 1), (0, 1)])
def test_a_small_model_makes_more_updates_of_fewer_rows(parameters: int, batches: int) -> None:
    assert automatic_accumulation(parameters) == batches


@pytest.mark.parametrize(
    ("rows", "pairs", "epochs"),
    [(400, 8, 10), (4000, 8, 10), (112, 8, 36), (200, 8, 20), (1, 8, 50), (400, 32, 10), (112, 32, 33)],
)
def test_few_rows_are_passed_more_often(rows: int, pairs: int, epochs: int) -> None:
    """As many updates as ten passes over 400 rows make, in ten passes at least and fifty at most."""
    assert automatic_epochs(rows, pairs) == epochs
