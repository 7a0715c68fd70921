"""Indices on trial: each statistic by hand and against naive versions, paired draws, thresholds, calibration sizes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from d2unlearn.analysis.records import Estimate
from d2unlearn.analysis.statistics import (
    BINS,
    PLACEMENTS,
    RATES,
    STATISTICS,
    Judged,
    calibration_curve,
    draw,
    estimate,
    refusals,
    refused_share,
    separations,
    statistics,
    threshold_at,
)
from d2unlearn.stats import auroc, fpr_at_tpr, ks_distance

Floats = NDArray[np.float64]


def measured(retain: list[float], forget: list[float], n_boot: int = 0) -> dict[str, Floats]:
    """Each statistic, in the sample and in every draw, with every request its own group."""
    low, high = np.array(retain, dtype=float), np.array(forget, dtype=float)
    return statistics(low, high, draw(range(len(low)), n_boot, 1), draw(range(len(high)), n_boot, 2))


def values(retain: list[float], forget: list[float]) -> dict[str, float]:
    return {name: float(each[0]) for name, each in measured(retain, forget).items()}


def test_each_statistic_by_hand() -> None:
    """Retained 1 2 3 4, forget 3 5 6 7.

    AUROC: 3 beats 1 and 2 and ties with 3 (2.5 of 4), the others beat all: 14.5 / 16. Catching 95% of forget means catching 3,
    and with it the retained 3 and 4. KS: at 4 all retained and a quarter of forget lie below. Overlap: of seven values each is
    a bin of its own; 3 holds a quarter of both sets. Average precision: 7, 6, 5 are found before any retained request, then
    4, then both 3: at that threshold all of forget and half of retained are caught.
    """
    found = values([1, 2, 3, 4], [3, 5, 6, 7])
    assert list(found) == list(STATISTICS)
    assert found == pytest.approx(
        {
            "auroc": 14.5 / 16,
            "fpr_at_95_tpr": 0.5,
            "ks_distance": 0.75,
            "overlap": 0.25,
            "aupr": 3 / 4 + 1 / 4 * (1 / 1.5),
        }
    )


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
    retain_draws, forget_draws = draw([i // 5 for i in range(30)], 8, 3), draw(range(20), 8, 4)
    found = statistics(retain, forget, retain_draws, forget_draws)
    for place in range(9):
        low = np.repeat(retain, retain_draws.counts[place].astype(int))
        high = np.repeat(forget, forget_draws.counts[place].astype(int))
        assert found["auroc"][place] == pytest.approx(auroc(low, high))
        assert found["fpr_at_95_tpr"][place] == pytest.approx(fpr_at_tpr(low, high))
        assert found["ks_distance"][place] == pytest.approx(ks_distance(low, high))


def test_draws_take_whole_groups_and_as_many_as_there_are() -> None:
    counts = draw(["a", "a", "b", "b", "b", "c"], 200, 0).counts
    assert np.array_equal(counts[0], np.ones(6))
    assert np.array_equal(counts[:, 0], counts[:, 1])
    assert np.array_equal(counts[:, 2], counts[:, 4])
    assert np.array_equal(counts[:, [0, 2, 5]].sum(axis=1), np.full(201, 3))
    assert np.array_equal(draw("aabbbc", 5, 7).counts, draw("aabbbc", 5, 7).counts)
    assert draw([], 5, 0).counts.shape == (6, 0)


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


def test_infinite_evidence_counts_and_what_is_no_number_does_not() -> None:
    assert values([1, 2, -math.inf], [3, math.inf])["auroc"] == 1
    assert values([1, math.nan, 2, 4], [3, math.nan]) == values([1, 2, 4], [3])
    for empty in (values([], [1.0]), values([math.nan], [1.0, 2.0]), values([], [])):
        assert all(math.isnan(value) for value in empty.values())


def test_a_monotone_change_of_the_evidence_changes_nothing() -> None:
    rng = np.random.default_rng(2)
    retain, forget = rng.normal(0, 1, 50), rng.normal(1, 2, 40)
    plain = measured(retain.tolist(), forget.tolist(), 20)
    bent = measured(np.exp(retain - 3).tolist(), np.exp(forget - 3).tolist(), 20)
    for name in STATISTICS:
        np.testing.assert_allclose(plain[name], bent[name])


def test_the_overlap_is_the_common_area_of_two_normal_densities() -> None:
    """N(0, 1) and N(1, 1) share 2 Phi(-1/2) = 0.617 of their area; equal sets share what the docstring says of 400 and 400."""
    rng = np.random.default_rng(3)
    found = [values(rng.normal(0, 1, 4000).tolist(), rng.normal(1, 1, 4000).tolist())["overlap"] for _ in range(3)]
    assert np.mean(found) == pytest.approx(0.617, abs=0.015)
    equal = [values(rng.normal(0, 1, 400).tolist(), rng.normal(0, 1, 400).tolist())["overlap"] for _ in range(20)]
    assert np.mean(equal) == pytest.approx(0.88, abs=0.01)
    assert BINS == 20


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


def test_a_difference_between_indices_is_taken_draw_by_draw() -> None:
    """An index that adds a little noise to another is almost as good: the difference's interval is far narrower than theirs."""
    rng = np.random.default_rng(5)
    retain, forget = rng.normal(0, 1, 100), rng.normal(1, 1, 100)
    noisy = (retain + rng.normal(0, 0.05, 100), forget + rng.normal(0, 0.05, 100))
    evidence = {"a": (retain, forget), "b": noisy, "none": (rng.normal(0, 1, 100), rng.normal(0, 1, 100))}
    found = {s.index: s for s in separations(evidence, draw(range(100), 200, 0), draw(range(100), 200, 1), "a", ("f", "r"))}
    assert {(s.forget, s.retain) for s in found.values()} == {("f", "r")}
    assert (found["a"].ahead.value, found["a"].ahead.low, found["a"].ahead.high) == (0, 0, 0)
    own, paired = found["b"].statistics["auroc"], found["b"].ahead
    assert paired.high - paired.low < (own.high - own.low) / 4
    assert paired.low <= paired.value == pytest.approx(own.value - found["a"].statistics["auroc"].value)
    assert found["none"].ahead.high < 0


def test_a_threshold_is_the_conformal_one_or_the_largest_score() -> None:
    scores = np.arange(1.0, 200.0)
    rng = np.random.default_rng(6)
    rng.shuffle(scores)
    assert threshold_at(scores, 0.01) == 198  # rank ceil(200 * 0.99)
    assert threshold_at(scores, 0.05) == 190
    assert threshold_at(scores[:98], 0.01) == scores[:98].max()  # 99 are needed
    assert threshold_at(np.array([3.0, math.nan, 1.0]), 0.01) == 3
    assert math.isnan(threshold_at(np.array([math.nan]), 0.01))


def test_refused_is_what_lies_above_the_threshold() -> None:
    draws = draw([0, 0, 1, 1], 50, 0)
    shares = refused_share(np.array([1.0, 2.0, 3.0, math.nan]), 2.0, draws)
    assert shares[0] == pytest.approx(1 / 3)
    for counts, share in zip(draws.counts, shares, strict=True):
        assert share == pytest.approx(counts[2] / counts[:3].sum())


def test_refusals_at_every_rate_beside_the_reference_index() -> None:
    calibration = np.arange(1.0, 101.0)
    sharp = Judged(calibration, {"forget": np.array([99.5, 101, 102, 103]), "retain": np.array([1.0, 98, 99.5, 96])})
    blunt = Judged(calibration, {"forget": np.array([50.0, 60, 102, 103]), "retain": np.array([1.0, 2, 3, 4])})
    draws = {"forget": draw(range(4), 20, 0), "retain": draw(range(4), 20, 1)}
    both = refusals({"sharp": sharp, "blunt": blunt}, draws, "sharp", "forget")
    found = {(r.index, r.rate): r for r in both if r.placement == "conformal"}
    one = found["sharp", 0.01]
    assert one.threshold == 100
    assert {name: share.value for name, share in one.refused.items()} == {"forget": 0.75, "retain": 0.0}
    assert found["sharp", 0.05].threshold == 96
    assert {name: share.value for name, share in found["sharp", 0.05].refused.items()} == {"forget": 1, "retain": 0.5}
    assert {name: more.value for name, more in found["blunt", 0.05].more.items()} == {"forget": -0.5, "retain": -0.5}
    assert found["sharp", 0.05].more["retain"] == Estimate(0, 0, 0)


def test_a_raised_threshold_lies_in_the_gap_to_the_forget_set_and_never_below_the_conformal_one() -> None:
    """At 5% of 1 to 100 the conformal threshold is 96. Every calibration score above it is an error until it is passed: the
    widest gap without errors is between 100 and 110. Where forget lies below, the fewest errors are between 99 and 100.
    """
    calibration = np.arange(1.0, 101.0)
    apart = Judged(calibration, {"forget": np.array([110.0, 112, math.nan]), "retain": np.array([104.0, 106])})
    below = Judged(calibration, {"forget": np.array([10.0, 20, 30]), "retain": np.array([97.0, 1])})
    draws = {"forget": draw(range(3), 20, 0), "retain": draw(range(2), 20, 1)}
    found = {(r.index, r.rate, r.placement): r for r in refusals({"apart": apart, "below": below}, draws, "apart", "forget")}
    assert [found["apart", 0.05, place].threshold for place in PLACEMENTS] == [96, 105]
    assert [found["apart", 0.05, place].refused["retain"].value for place in PLACEMENTS] == [1, 0.5]
    assert [found["apart", 0.05, place].refused["forget"].value for place in PLACEMENTS] == [1, 1]
    assert found["below", 0.05, "conformal"].threshold == 96
    assert found["below", 0.05, "raised"].threshold == 99.5
    assert all(found[i, r, "raised"].threshold >= found[i, r, "conformal"].threshold for i in ("apart", "below") for r in RATES)


def test_a_calibration_curve_on_scores_with_a_known_answer() -> None:
    """Calibration and retained uniform: at 5% a conformal threshold refuses (n + 1 - k) / (n + 1) on average, k the rank."""
    rng = np.random.default_rng(7)
    pool, retain, forget = rng.uniform(0, 1, 400), np.linspace(0, 1, 2001), np.linspace(0.5, 1.5, 1001)
    points = calibration_curve(
        "x", lambda _, rows: (pool[rows], retain, forget), 400, (19, 99, 999), fitted=False, n_draws=300, seed=0
    )
    assert [(p.n, p.rate, p.guaranteed) for p in points] == [
        (19, 0.01, False),
        (19, 0.05, True),
        (99, 0.01, True),
        (99, 0.05, True),
    ]
    by_key = {(p.n, p.rate): p for p in points}
    assert by_key[19, 0.05].false_refusals.value == pytest.approx(1 / 20, abs=0.015)
    assert by_key[99, 0.05].false_refusals.value == pytest.approx(5 / 100, abs=0.015)
    assert by_key[99, 0.01].false_refusals.value == pytest.approx(1 / 100, abs=0.007)
    assert by_key[19, 0.01].false_refusals.value == by_key[19, 0.05].false_refusals.value
    narrow, wide = (by_key[n, 0.05].false_refusals for n in (99, 19))
    assert narrow.high - narrow.low < wide.high - wide.low
    assert by_key[99, 0.05].missed.value == pytest.approx(0.5 - by_key[99, 0.05].false_refusals.value, abs=0.002)


def test_a_fitted_index_spends_half_of_the_rows_on_fitting() -> None:
    seen: list[tuple[int, int]] = []

    def judge(fit: NDArray[np.intp], rows: NDArray[np.intp]) -> tuple[Floats, Floats, Floats]:
        seen.append((len(fit), len(rows)))
        assert not set(fit.tolist()) & set(rows.tolist())
        return rows.astype(float), np.array([-1.0]), np.array([500.0])

    points = calibration_curve("x", judge, 300, (200, 100), fitted=True, n_draws=2, seed=0)
    assert seen == [(100, 100)] * 2 + [(50, 50)] * 2
    assert [(p.n, p.rate, p.guaranteed) for p in points if p.rate == 0.01] == [(200, 0.01, True), (100, 0.01, False)]
    assert {p.missed.value for p in points} == {0.0}
