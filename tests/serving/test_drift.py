"""The drift alarm: bets worked by hand, false alarms by simulation, drifts found, and what the server says of it."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest

from d2unlearn.serving.drift import JUMP, DriftWatch
from generation.conftest import Halves

from .conftest import Served, serving


def test_bets_by_hand() -> None:
    """A score above all of nine: p is U / 10, and the capital on -1 grows by 1 - (p - 1/2)."""
    watch = DriftWatch([float(i) for i in range(9)], 100.0)
    u = Random(0).random()
    assert watch.note(50.0) is False
    p = u / 10
    kept = (1 - JUMP) / 3 + JUMP / 3
    assert watch.martingale == pytest.approx(kept * ((1 - (p - 0.5)) + 1 + (1 + (p - 0.5))))
    watch.note(60.0)
    second = Random(0)
    second.random()
    q = second.random() / 11
    after = [kept * (1 + bet * (p - 0.5)) for bet in (-1, 0, 1)]
    jumped = [(1 - JUMP) * own + JUMP * sum(after) / 3 for own in after]
    assert watch.martingale == pytest.approx(
        sum(own * (1 + bet * (q - 0.5)) for own, bet in zip(jumped, (-1, 0, 1), strict=True))
    )


def test_refusals_by_hand() -> None:
    """None of three before, both of two now: kt(0, 3) = 5/16, kt(2, 2) = 3/8, over (2/5)^2 (3/5)^3."""
    watch = DriftWatch([1.0, 2.0, 3.0], 5.0)
    assert watch.refused_ratio == pytest.approx(5 / 16)
    watch.note(6.0)
    watch.note(7.0)
    assert watch.refused_ratio == pytest.approx(5 / 16 * 3 / 8 / (0.4**2 * 0.6**3))
    assert watch.evidence == max(watch.martingale, watch.refused_ratio) / 2


def test_a_tenth_of_forgotten_questions_is_found() -> None:
    """The others are as before, so hardly a rank moves."""
    rng = Random(5)
    watch = DriftWatch([rng.gauss(0, 1) for _ in range(260)], 3.0)
    found = next(n for n in range(1, 2000) if watch.note(9.0 if n % 10 == 0 else rng.gauss(0, 1)))
    assert found < 300


def test_scores_above_the_threshold_count_alike() -> None:
    """A refused request's score is that of the moment it was refused at, not its highest."""
    one, other = (DriftWatch([1.0, 2.0, 3.0, 9.0], 5.0) for _ in range(2))
    for score in (2.5, 6.0, 7.0, 1.5):
        one.note(score)
        other.note(math.inf if score > 5 else score)
    assert one.martingale == other.martingale
    assert one.note(math.nan) is False


def test_false_alarms_are_as_rare_as_stated_and_drifts_are_found() -> None:
    """60 calibrations of 99 scores, 400 requests each, at a rate of 5 %: at most 3 are expected, 9 come once in 1000."""
    rng, false, late = Random(3), 0, []
    for _ in range(60):
        calibration = [rng.gauss(0, 1) for _ in range(99)]
        watch = DriftWatch(calibration, 2.3, false_alarms=0.05)
        false += any(watch.note(rng.gauss(0, 1)) for _ in range(400))
        for direction in (-1.0, 1.0):
            drifted = DriftWatch(calibration, 2.3)
            late.append(next(n for n in range(1, 1000) if drifted.note(rng.gauss(direction, 1))))
    assert false <= 9
    assert max(late) < 150


def test_a_window_begins_again_from_calibration() -> None:
    watch = DriftWatch([0.0, 1.0, 2.0], 5.0, window=3)
    for score in (3.0, 3.0, 3.0):
        watch.note(score)
    assert watch.martingale != 1
    fresh = DriftWatch([0.0, 1.0, 2.0], 5.0, window=3)
    fresh._random.setstate(watch._random.getstate())
    watch.note(0.5)
    fresh.note(0.5)
    assert watch.martingale == fresh.martingale


def test_the_sliding_histogram_holds_the_latest_scores() -> None:
    watch = DriftWatch([0.0], 5.0)
    assert all(map(math.isnan, watch.shares_up_to([1.0])))
    for score in range(2000):
        watch.note(score / 1000)
    assert watch.shares_up_to([0.5, 1.5, 9.0]) == [0.0, pytest.approx(0.501), 1.0]


def test_the_server_watches_and_says_so(split: Halves, capsys: pytest.CaptureFixture[str]) -> None:
    """The same refused question over and over is not what was calibrated; drawn answers are not held against greedy ones."""
    refused = split.prompts[int(np.argmax(split.scores))]
    assert split.guarded.gate is not None
    with serving(split.guarded, max_new_tokens=split.guarded.gate.max_new_tokens) as running:
        running.chat(refused, temperature=1.0)
        assert metric(running, "d2_drift_evidence") == 0.5
        for _ in range(8):
            got = running.send("/v1/completions", {"prompt": [refused] * 8})
            assert got.status == 200
        assert metric(running, "d2_drift_alarms_total") >= 1
        assert metric(running, "d2_drift_alarm_level") == 100
        assert running.send("/metrics").body.decode().count("d2_recent_score_share{") == 17
        assert refused not in running.send("/metrics").body.decode()
    assert "alarm: requests no longer score as those" in capsys.readouterr().err


def metric(running: Served, name: str) -> float:
    lines = running.send("/metrics").body.decode().splitlines()
    return float(next(line for line in lines if line.startswith(f"{name} ")).split()[-1])
