"""Separation of forget from retained requests: each statistic by hand, with intervals that cover what they should."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import ks_2samp

from d2unlearn.metrics.separation import separation
from d2unlearn.schema import MetricResult
from d2unlearn.stats import ks_distance


def by_name(metrics: list[MetricResult]) -> dict[str, MetricResult]:
    return {metric.name.removesuffix("_x"): metric for metric in metrics}


def test_each_statistic_by_hand() -> None:
    """Retained 1 2 3 4, forget 3 5 6 7 (twice over): 3 beats two of four and ties with one, the others beat all.

    AUROC: (2 + 0.5 + 4 + 4 + 4) / 16. To catch 95% of forget, 3 must be caught: retained 3 and 4 lie at or above it.
    KS: at 4 all retained and a quarter of the forget requests lie below.
    """
    found = by_name(separation("x", [1, 2, 3, 4], [3, 5, 6, 7]))
    assert list(found) == ["auroc", "fpr_at_95_tpr", "ks_distance"]
    assert [metric.value for metric in found.values()] == pytest.approx([14.5 / 16, 0.5, 0.75])
    assert [metric.better for metric in found.values()] == ["higher", "lower", "higher"]
    assert {metric.n for metric in found.values()} == {8}
    assert all(metric.low <= metric.value <= metric.high for metric in found.values())


def test_perfect_and_no_separation() -> None:
    apart = by_name(separation("x", [-5.0, -4.0, -3.0], [1.0, 2.0]))
    assert [(m.value, m.low, m.high) for m in apart.values()] == [(1, 1, 1), (0, 0, 0), (1, 1, 1)]
    same = by_name(separation("x", [1.0] * 5, [1.0] * 5))
    assert [m.value for m in same.values()] == [0.5, 1.0, 0.0]
    wrong = by_name(separation("x", [1.0, 2.0], [-5.0, -4.0]))
    assert [m.value for m in wrong.values()] == [0.0, 1.0, 1.0]


def test_what_could_not_be_scored_is_left_out_and_counted() -> None:
    clean = separation("x", [1, 2, 3], [2, 4])
    with_gaps = separation("x", [1, math.nan, 2, 3], [math.nan, 2, math.nan, 4])
    assert [(m.value, m.low, m.high, m.n) for m in with_gaps] == [(m.value, m.low, m.high, m.n) for m in clean]
    assert {m.unscored for m in with_gaps} == {3}
    assert {m.unscored for m in clean} == {0}


@pytest.mark.parametrize(("retain", "forget"), [([], [1.0]), ([1.0], []), ([math.nan], [1.0, 2.0]), ([], [])])
def test_an_empty_side_gives_nan_and_not_a_half(retain: list[float], forget: list[float]) -> None:
    for metric in separation("x", retain, forget):
        assert np.isnan([metric.value, metric.low, metric.high]).all()
        assert metric.n == 0
        assert metric.unscored == sum(map(math.isnan, retain + forget))


def test_the_interval_depends_on_the_seed_alone_and_covers_the_truth() -> None:
    """AUROC of N(0,1) against N(1,1) is Phi(1/sqrt 2) = 0.7602: 95% intervals of 15 draws miss it seldom."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(15):
        retain, forget = rng.normal(0, 1, 60).tolist(), rng.normal(1, 1, 60).tolist()
        metric = by_name(separation("x", retain, forget))["auroc"]
        covered += metric.low <= 0.7602 <= metric.high
        assert 0.1 < metric.high - metric.low < 0.3
    assert covered >= 12
    assert separation("x", retain, forget, seed=3) == separation("x", retain, forget, seed=3)
    assert separation("x", retain, forget, seed=3)[0].low != separation("x", retain, forget, seed=4)[0].low


def test_intervals_are_drawn_over_groups_where_a_side_has_them() -> None:
    """Ten equal requests an author are one observation an author: as wide as for the authors alone, wider than for requests."""
    rng = np.random.default_rng(5)
    retain, forget = rng.normal(0, 1, 12), rng.normal(1, 1, 8)
    alone = separation("x", retain.tolist(), forget.tolist(), seed=2)
    many = [np.repeat(side, 10).tolist() for side in (retain, forget)]
    authors = [[f"author-{i // 10}" for i in range(len(side))] for side in many]
    clustered = separation("x", *many, groups=(authors[0], authors[1]), seed=2)
    as_if_independent = separation("x", *many, seed=2)
    for one, other, narrow in zip(alone, clustered, as_if_independent, strict=True):
        assert (other.value, other.low, other.high) == pytest.approx((one.value, one.low, one.high), abs=1e-12)
        assert narrow.high - narrow.low < 0.7 * (other.high - other.low)
        assert other.n == 200


def test_groups_of_requests_that_were_not_scored_are_left_out() -> None:
    gaps, groups = [1.0, math.nan, 2.0, math.nan, 3.0], ["a", "a", "b", "c", "d"]
    found = separation("x", gaps, [2.5, 4.0], groups=(groups, None), seed=1)
    assert found == [
        replace(each, unscored=2) for each in separation("x", [1, 2, 3], [2.5, 4.0], groups=(["a", "b", "d"], None), seed=1)
    ]
    with pytest.raises(ValueError, match="zip"):
        separation("x", [1.0, 2.0], [3.0], groups=(["a"], None))


def test_the_ks_distance_is_scipy_s_with_ties_too() -> None:
    rng = np.random.default_rng(2)
    for _ in range(50):
        a, b = (rng.integers(0, 9, rng.integers(1, 30)) + rng.integers(0, 3) for _ in range(2))
        assert ks_distance(a, b) == pytest.approx(ks_2samp(a, b).statistic, abs=1e-12)


def test_scores_may_be_shifted_and_stretched() -> None:
    rng = np.random.default_rng(1)
    retain, forget = rng.normal(0, 1, 30), rng.normal(1, 1, 20)
    first = separation("x", retain.tolist(), forget.tolist())
    moved = separation("x", (retain * 3 - 40).tolist(), (forget * 3 - 40).tolist())
    for one, other in zip(first, moved, strict=True):
        assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high))
