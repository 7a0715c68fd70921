"""Thresholds on a detector's scores: where they lie, what they refuse, how many calibration requests they need."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from d2unlearn.analysis.records import Estimate
from d2unlearn.analysis.roc import BootstrapWeights
from d2unlearn.analysis.thresholds import (
    PLACEMENTS,
    REFUSAL_RATES,
    DetectorScores,
    calibration_curve,
    refusals,
    refused_share,
    threshold_at,
)
from d2unlearn.stats import Floats


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
    draws = BootstrapWeights.draw([0, 0, 1, 1], 50, 0)
    shares = refused_share(np.array([1.0, 2.0, 3.0, math.nan]), 2.0, draws)
    assert shares[0] == pytest.approx(1 / 3)
    for counts, share in zip(draws.counts, shares, strict=True):
        assert share == pytest.approx(counts[2] / counts[:3].sum())


def test_refusals_at_every_rate_beside_the_base_detector() -> None:
    calibration = np.arange(1.0, 101.0)
    sharp = DetectorScores(calibration, {"forget": np.array([99.5, 101, 102, 103]), "retain": np.array([1.0, 98, 99.5, 96])})
    blunt = DetectorScores(calibration, {"forget": np.array([50.0, 60, 102, 103]), "retain": np.array([1.0, 2, 3, 4])})
    draws = {"forget": BootstrapWeights.draw(range(4), 20, 0), "retain": BootstrapWeights.draw(range(4), 20, 1)}
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
    widest gap without errors is between 100 and 110. Where forget lies below, all gaps are alike and the first is within one
    standard error of the fewest errors.
    """
    calibration = np.arange(1.0, 101.0)
    apart = DetectorScores(calibration, {"forget": np.array([110.0, 112, math.nan]), "retain": np.array([104.0, 106])})
    below = DetectorScores(calibration, {"forget": np.array([10.0, 20, 30]), "retain": np.array([97.0, 1])})
    draws = {"forget": BootstrapWeights.draw(range(3), 20, 0), "retain": BootstrapWeights.draw(range(2), 20, 1)}
    found = {(r.index, r.rate, r.placement): r for r in refusals({"apart": apart, "below": below}, draws, "apart", "forget")}
    assert [found["apart", 0.05, place].threshold for place in PLACEMENTS] == [96, 105]
    assert [found["apart", 0.05, place].refused["retain"].value for place in PLACEMENTS] == [1, 0.5]
    assert [found["apart", 0.05, place].refused["forget"].value for place in PLACEMENTS] == [1, 1]
    assert found["below", 0.05, "conformal"].threshold == 96
    assert found["below", 0.05, "raised"].threshold == 96.5
    assert all(
        found[i, r, "raised"].threshold >= found[i, r, "conformal"].threshold for i in ("apart", "below") for r in REFUSAL_RATES
    )


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


def test_a_fitted_detector_spends_half_of_the_rows_on_fitting() -> None:
    seen: list[tuple[int, int]] = []

    def rescore(fit: NDArray[np.intp], rows: NDArray[np.intp]) -> tuple[Floats, Floats, Floats]:
        seen.append((len(fit), len(rows)))
        assert not set(fit.tolist()) & set(rows.tolist())
        return rows.astype(float), np.array([-1.0]), np.array([500.0])

    points = calibration_curve("x", rescore, 300, (200, 100), fitted=True, n_draws=2, seed=0)
    assert seen == [(100, 100)] * 2 + [(50, 50)] * 2
    assert [(p.n, p.rate, p.guaranteed) for p in points if p.rate == 0.01] == [(200, 0.01, True), (100, 0.01, False)]
    assert {p.missed.value for p in points} == {0.0}
