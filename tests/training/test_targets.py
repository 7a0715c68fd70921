"""Targets and what lies between: hand-worked ways, the order of checkpoints, the verdict's words."""

from __future__ import annotations

import math
from typing import Any

import pytest

from d2unlearn.training.targets import (
    Standing,
    Targets,
    forget_left,
    forgotten,
    is_met,
    keep_lost,
    merit,
    nearest_two,
    standing_of,
    verdict,
)

TARGETS = Targets(forget_below=0.1, keep_at_least=0.99)
NAN = math.nan


def at(step: int, forget: float, kept: float, near: float = NAN) -> Standing:
    return Standing(step, step / 10, forget, kept, near, {})


def test_the_mean_over_rows_and_renderings_counts_where_it_is_more_than_the_rows_alone() -> None:
    assert forgotten(0.2, NAN) == 0.2
    assert forgotten(0.2, 0.1) == 0.2
    assert forgotten(0.2, 0.4) == pytest.approx(0.3)


def test_a_standing_is_shares_of_what_the_original_had_right() -> None:
    now = {"forget_probability": 0.2, "reworded_probability": 0.3, "retain_right": 0.9, "near_right": NAN, "gamma": 0.5}
    found = standing_of(now, {"retain_right": 0.95, "near_right": NAN}, step=7, epoch=2.0)
    assert (found.step, found.forget, found.retain) == (7, 0.25, pytest.approx(0.9 / 0.95))
    assert math.isnan(found.near)
    assert found.kept == found.retain
    assert found.weights == {"gamma": 0.5}
    assert standing_of({**now, "retain_right": 0.97}, {"retain_right": 0.95, "near_right": 1.0}, step=0, epoch=0.0).kept == 1.0


def test_what_is_left_is_a_share_of_the_way_in_logarithms() -> None:
    """From 1 to 0.1: a third of the way is 10^(-1/3), beyond the start it is all of it, at the bound nothing."""
    assert forget_left(10 ** (-1 / 3), 1.0, TARGETS) == pytest.approx(2 / 3)
    assert [forget_left(p, 1.0, TARGETS) for p in (1.0, 0.1, 0.01)] == [1.0, 0.0, 0.0]
    assert forget_left(0.9, 0.5, TARGETS) == 1.0
    assert forget_left(0.2, 0.05, TARGETS) == 1.0  # the original is below the bound already
    assert keep_lost(0.98, TARGETS) == pytest.approx(1.0)
    assert keep_lost(0.995, TARGETS) == 0.0


def test_a_checkpoint_that_meets_both_is_before_all_others_and_no_numbers_before_none() -> None:
    """Tenfold the loss that is allowed weighs as much as the whole way of forgetting."""
    assert merit(at(1, 0.05, 0.995), 1.0, TARGETS, 0.7) == 0.7
    assert merit(at(1, 0.05, 0.89), 1.0, TARGETS, 0.9) == pytest.approx(-1.0)
    assert merit(at(1, 1.0, 1.0), 1.0, TARGETS, 0.9) == pytest.approx(-1.0)
    assert merit(at(1, 10**-0.5, 0.98), 1.0, TARGETS, 0.9) == pytest.approx(-0.6)
    assert math.isnan(merit(at(1, NAN, NAN), 1.0, TARGETS, NAN))


def test_near_rows_alone_can_miss_and_what_was_never_known_cannot() -> None:
    assert not is_met(at(1, 0.05, 1.0, near=0.98), TARGETS)
    assert is_met(at(1, 0.1, NAN), TARGETS)
    assert not is_met(at(1, NAN, 1.0), TARGETS)


PATH = [at(10, 0.5, 0.999), at(20, 0.2, 0.992), at(30, 0.09, 0.97), at(40, 0.02, 0.95), at(50, NAN, NAN)]


@pytest.mark.parametrize(
    ("path", "steps"),
    [(PATH, [20, 30]), (PATH[:2], [20]), (PATH[2:], [30]), ([at(1, 0.3, 0.98), at(2, 0.2, 0.9)], [1, 2]), (PATH[4:], [])],
)
def test_the_two_nearest_points_are_one_from_each_side(path: list[Standing], steps: list[int]) -> None:
    assert [point.step for point in nearest_two(path, TARGETS)] == steps


@pytest.mark.parametrize(
    ("held", "words"),
    [
        (
            PATH[2],
            "target missed: keep (forget at most 0.1, keep at least 0.99); the nearest points: step 20 ",
        ),
        (PATH[0], "target missed: forget ("),
        (at(9, 0.2, 0.5), "target missed: forget and keep ("),
        (None, "target missed: forget and keep ("),
        (at(9, 0.05, 0.995, near=1.0), "both targets hold (forget at most 0.1, keep at least 0.99): step 9 forget 0.05, kept "),
    ],
)
def test_the_verdict_says_which_target_is_missed_and_what_comes_nearest(held: Any, words: str) -> None:
    said = verdict(PATH, held, TARGETS)
    assert said.startswith(words)
    assert ("step 30 forget 0.09, kept retained 0.970" in said) == words.startswith("target missed")
