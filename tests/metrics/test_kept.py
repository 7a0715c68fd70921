"""What stayed, by hand."""

from __future__ import annotations

import math

import pytest

from d2unlearn.metrics.kept import Stayed, kept


def test_the_least_of_the_shares_counts() -> None:
    """Unseen: 0.76 of 0.95 tokens right is 0.8, and a KL of 0.1 nats leaves exp(-0.1) = 0.905. Near: 0.9 of 0.9, exp(-0.5)."""
    unseen, near = Stayed(0.76, 0.95, 0.1), Stayed(0.9, 0.9, 0.5)
    assert unseen.shares == pytest.approx((0.8, 0.904837))
    assert kept([unseen]) == pytest.approx(0.8)
    assert kept([unseen, near]) == pytest.approx(math.exp(-0.5))


def test_more_right_than_before_is_no_more_than_all_of_it() -> None:
    assert kept([Stayed(0.9, 0.6)]) == 1.0


def test_a_set_of_which_the_original_has_nothing_right_is_judged_by_the_kl_alone() -> None:
    assert kept([Stayed(0.0, 0.0, 0.25)]) == pytest.approx(math.exp(-0.25))
    assert math.isnan(kept([Stayed(0.0, 0.0)]))


@pytest.mark.parametrize("broken", [Stayed(math.nan, 0.9, 0.1), Stayed(0.8, 0.9, math.nan)])
def test_what_is_no_number_is_not_passed_over(broken: Stayed) -> None:
    assert math.isnan(kept([Stayed(0.9, 0.9, 0.0), broken]))
