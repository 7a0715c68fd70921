"""Each ROC statistic by hand and against naive versions, bootstrap weights, intervals, paired differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from d2unlearn.analysis.roc import (
    OVERLAP_BINS,
    ROC_STATISTICS,
    BootstrapWeights,
    Roc,
    estimate,
    pair_separations,
    roc_statistics,
    weighted_roc,
)
from d2unlearn.stats import Floats, auroc, fpr_at_tpr, ks_distance


def measured(retain: list[float], forget: list[float], n_boot: int = 0) -> dict[str, Floats]:
    """Each statistic, in the sample and in every draw, with every request its own group."""
    low, high = np.array(retain, dtype=float), np.array(forget, dtype=float)
    return roc_statistics(
        low, high, BootstrapWeights.draw(range(len(low)), n_boot, 1), BootstrapWeights.draw(range(len(high)), n_boot, 2)
    )


def values(retain: list[float], forget: list[float]) -> dict[str, float]:
    return {name: float(values[0]) for name, values in measured(retain, forget).items()}


def test_each_statistic_by_hand() -> None:
    """Retained 1 2 3 4, forget 3 5 6 7.

    AUROC: 3 beats 1 and 2 and ties with 3 (2.5 of 4), the others beat all: 14.5 / 16. Catching 95% of forget means catching 3,
    and with it the retained 3 and 4. KS: at 4 all retained and a quarter of forget lie below. Overlap: of seven values each is
    a bin of its own; 3 holds a quarter of both sets. Average precision: 7, 6, 5 are found before any retained request, then
    4, then both 3: at that threshold all of forget and half of retained are caught.
    """
    found = values([1, 2, 3, 4], [3, 5, 6, 7])
    assert list(found) == list(ROC_STATISTICS)
    assert found == pytest.approx(
        {
            "auroc": 14.5 / 16,
            "fpr_at_95_tpr": 0.5,
            "ks_distance": 0.75,
            "overlap": 0.25,
            "aupr": 3 / 4 + 1 / 4 * (1 / 1.5),
        }
    )


def roc_of(retain: Floats, forget: Floats) -> Roc:
    return weighted_roc(retain, forget, *(BootstrapWeights.draw(range(len(side)), 0, 0) for side in (retain, forget)))


def test_a_roc_curve_by_hand_and_its_area() -> None:
    """Retained 1 2 3 4, forget 3 5: above 5 nobody, from 5 on half of forget, from 4 on a quarter of retained besides."""
    curve = roc_of(np.array([1.0, 2, 3, 4]), np.array([3.0, 5, math.nan]))
    assert curve.fpr[0].tolist() == [1, 0.75, 0.5, 0.25, 0, 0]
    assert curve.tpr[0].tolist() == [1, 1, 1, 0.5, 0.5, 0]
    rng = np.random.default_rng(0)
    low, high = rng.integers(0, 9, 60).astype(float), rng.integers(3, 12, 40).astype(float)
    drawn = roc_of(low, high)
    assert np.trapezoid(drawn.tpr[0, ::-1], drawn.fpr[0, ::-1]) == pytest.approx(auroc(low, high))


def test_the_statistics_are_the_naive_ones_with_ties_and_unequal_sides() -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        retain = rng.integers(0, 12, rng.integers(1, 40)).astype(float)
        forget = rng.integers(2, 15, rng.integers(1, 40)).astype(float)
        found = values(retain.tolist(), forget.tolist())
        truth = np.repeat([0, 1], [len(retain), len(forget)])
        even = np.repeat([1 / len(retain), 1 / len(forget)], [len(retain), len(forget)])
        assert found["auroc"] == pytest.approx(auroc(retain, forget))
        assert found["fpr_at_95_tpr"] == pytest.approx(fpr_at_tpr(retain, forget))
        assert found["ks_distance"] == pytest.approx(ks_distance(retain, forget))
        both = np.concatenate([retain, forget])
        assert found["aupr"] == pytest.approx(average_precision_score(truth, both, sample_weight=even))


def test_a_draw_is_the_statistic_of_the_requests_drawn() -> None:
    rng = np.random.default_rng(1)
    retain, forget = rng.normal(0, 1, 30), rng.normal(1, 1, 20)
    retain_draws, forget_draws = (
        BootstrapWeights.draw([i // 5 for i in range(30)], 8, 3),
        BootstrapWeights.draw(range(20), 8, 4),
    )
    found = roc_statistics(retain, forget, retain_draws, forget_draws)
    for place in range(9):
        low = np.repeat(retain, retain_draws.counts[place].astype(int))
        high = np.repeat(forget, forget_draws.counts[place].astype(int))
        assert found["auroc"][place] == pytest.approx(auroc(low, high))
        assert found["fpr_at_95_tpr"][place] == pytest.approx(fpr_at_tpr(low, high))
        assert found["ks_distance"][place] == pytest.approx(ks_distance(low, high))


def test_draws_take_whole_groups_and_as_many_as_there_are() -> None:
    counts = BootstrapWeights.draw(["a", "a", "b", "b", "b", "c"], 200, 0).counts
    assert np.array_equal(counts[0], np.ones(6))
    assert np.array_equal(counts[:, 0], counts[:, 1])
    assert np.array_equal(counts[:, 2], counts[:, 4])
    assert np.array_equal(counts[:, [0, 2, 5]].sum(axis=1), np.full(201, 3))
    assert np.array_equal(BootstrapWeights.draw("aabbbc", 5, 7).counts, BootstrapWeights.draw("aabbbc", 5, 7).counts)
    assert BootstrapWeights.draw([], 5, 0).counts.shape == (6, 0)


def test_apart_and_alike() -> None:
    assert values([1, 2, 3], [7, 8, 9]) == {
        "auroc": 1,
        "aupr": 1,
        "fpr_at_95_tpr": 0,
        "overlap": 0,
        "ks_distance": 1,
    }
    alike = values([5.0] * 4, [5.0] * 7)
    assert alike == {"auroc": 0.5, "aupr": 0.5, "fpr_at_95_tpr": 1, "overlap": 1, "ks_distance": 0}


def test_infinite_scores_count_and_what_is_no_number_does_not() -> None:
    assert values([1, 2, -math.inf], [3, math.inf])["auroc"] == 1
    assert values([1, math.nan, 2, 4], [3, math.nan]) == values([1, 2, 4], [3])
    for empty in (values([], [1.0]), values([math.nan], [1.0, 2.0]), values([], [])):
        assert all(math.isnan(value) for value in empty.values())


def test_a_monotone_change_of_the_scores_changes_nothing() -> None:
    rng = np.random.default_rng(2)
    retain, forget = rng.normal(0, 1, 50), rng.normal(1, 2, 40)
    plain = measured(retain.tolist(), forget.tolist(), 20)
    bent = measured(np.exp(retain - 3).tolist(), np.exp(forget - 3).tolist(), 20)
    for name in ROC_STATISTICS:
        np.testing.assert_allclose(plain[name], bent[name])


def test_the_overlap_is_the_common_area_of_two_normal_densities() -> None:
    """N(0, 1) and N(1, 1) share 2 Phi(-1/2) = 0.617 of their area; equal sets share what the docstring says of 400 and 400."""
    rng = np.random.default_rng(3)
    found = [values(rng.normal(0, 1, 4000).tolist(), rng.normal(1, 1, 4000).tolist())["overlap"] for _ in range(3)]
    assert np.mean(found) == pytest.approx(0.617, abs=0.015)
    equal = [values(rng.normal(0, 1, 400).tolist(), rng.normal(0, 1, 400).tolist())["overlap"] for _ in range(20)]
    assert np.mean(equal) == pytest.approx(0.88, abs=0.01)
    assert OVERLAP_BINS == 20


def test_an_estimate_holds_its_value_and_corrects_for_bias() -> None:
    drawn = np.concatenate([[0.5], np.linspace(0, 1, 1001)])
    even = estimate(drawn)
    assert (even.value, even.low, even.high) == pytest.approx((0.5, 0.025, 0.975), abs=0.002)
    biased = estimate(np.concatenate([[0.3], np.linspace(0, 1, 1001)]))
    assert biased.low < 0.025 / 3
    assert biased.high < 0.83
    edge = estimate(np.concatenate([[2.0], np.linspace(0, 1, 1001)]))
    assert (edge.value, edge.high) == (2.0, 2.0)
    assert (estimate(np.ones(20)).low, estimate(np.ones(20)).high) == (1, 1)
    assert math.isnan(estimate(np.array([math.nan, 1.0])).low)
    assert math.isnan(estimate(np.array([1.0])).low)


def test_intervals_cover_the_truth() -> None:
    """AUROC of N(0,1) against N(1,1) is Phi(1/sqrt 2) = 0.7602."""
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(20):
        found = measured(rng.normal(0, 1, 60).tolist(), rng.normal(1, 1, 60).tolist(), 200)
        interval = estimate(found["auroc"])
        covered += interval.low <= 0.7602 <= interval.high
        assert 0.1 < interval.high - interval.low < 0.3
    assert covered >= 16


def test_a_difference_between_detectors_is_taken_draw_by_draw() -> None:
    """A detector that adds a little noise to another is almost as good: their difference has a far narrower interval."""
    rng = np.random.default_rng(5)
    retain, forget = rng.normal(0, 1, 100), rng.normal(1, 1, 100)
    noisy = (retain + rng.normal(0, 0.05, 100), forget + rng.normal(0, 0.05, 100))
    scores = {"a": (retain, forget), "b": noisy, "none": (rng.normal(0, 1, 100), rng.normal(0, 1, 100))}
    found = {
        s.index: s
        for s in pair_separations(
            scores, BootstrapWeights.draw(range(100), 200, 0), BootstrapWeights.draw(range(100), 200, 1), "a", ("f", "r")
        )
    }
    assert {(s.forget, s.retain) for s in found.values()} == {("f", "r")}
    assert (found["a"].ahead.value, found["a"].ahead.low, found["a"].ahead.high) == (0, 0, 0)
    own, paired = found["b"].statistics["auroc"], found["b"].ahead
    assert paired.high - paired.low < (own.high - own.low) / 4
    assert paired.low <= paired.value == pytest.approx(own.value - found["a"].statistics["auroc"].value)
    assert found["none"].ahead.high < 0
