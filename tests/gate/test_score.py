"""Scores of a request: against naive versions and hand-worked cases, batched and step by step."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from d2unlearn.errors import GateError
from d2unlearn.gate.score import (
    CANDIDATES,
    FirstTokens,
    Highest,
    MaxOf,
    MaxOverLooks,
    RunningScore,
    Score,
    TrailingWindow,
    request_scores,
    robust,
    running_scores,
    score_from_json,
    score_to_json,
)


def answers(seed: int, n: int, longest: int = 40) -> list[list[float]]:
    rng = np.random.default_rng(seed)
    return [list(rng.normal(-20, 4, size=rng.integers(1, longest + 1))) for _ in range(n)]


def naive(score: Score, energies: list[float]) -> float:
    """The score of a whole answer, written down from its docstring."""
    n = len(energies)
    if isinstance(score, FirstTokens):
        return float(np.mean(energies[: score.count]))
    if isinstance(score, MaxOverLooks):
        first = min(score.first, n - 1)
        last = min(score.last, n - 1)
        return max((np.mean(energies[: t + 1]) - score.centre[t]) / score.scale[t] for t in range(first, last + 1))
    if isinstance(score, TrailingWindow):
        width = min(score.width, n)
        return max(float(np.mean(energies[t : t + width])) for t in range(n - width + 1))
    if isinstance(score, Highest):
        return float(np.mean(sorted(energies, reverse=True)[: score.count]))
    assert isinstance(score, MaxOf)
    values = [naive(part, energies) for part in score.parts]
    return max((v - c) / s for v, c, s in zip(values, score.centre, score.scale, strict=True))


@pytest.mark.parametrize("name", CANDIDATES)
def test_a_score_equals_its_naive_version(name: str) -> None:
    score = CANDIDATES[name].fit(answers(0, 60))
    rows = answers(1, 50)
    np.testing.assert_allclose(request_scores(score, rows), [naive(score, row) for row in rows], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CANDIDATES)
def test_step_by_step_is_exactly_the_batch(name: str) -> None:
    score = CANDIDATES[name].fit(answers(0, 60))
    rows = answers(2, 30)
    together = request_scores(score, rows)
    for row, whole in zip(rows, together, strict=True):
        steps = running_scores(score, row)
        assert steps[-1] == whole
        assert all(later >= earlier for earlier, later in pairwise(steps))


@pytest.mark.parametrize("name", CANDIDATES)
def test_reaching_the_limit_is_an_end_like_any_other(name: str) -> None:
    score = CANDIDATES[name].fit(answers(0, 60))
    for row in answers(3, 20):
        running = RunningScore(score, 1)
        for energy in row:
            running.update(np.array([energy]), np.array([False]))
        assert running.finish()[0] == running_scores(score, row)[-1]


def test_hand_worked() -> None:
    energies = [-10.0, -20.0, -6.0, -4.0]
    assert running_scores(FirstTokens(1), energies) == [-10.0] * 4
    assert running_scores(FirstTokens(2), energies) == [-math.inf, -15.0, -15.0, -15.0]
    assert running_scores(FirstTokens(9), energies) == [-math.inf] * 3 + [-10.0]
    assert running_scores(TrailingWindow(2), energies) == [-math.inf, -15.0, -13.0, -5.0]
    assert running_scores(Highest(1), energies) == [-10.0, -10.0, -6.0, -4.0]
    assert running_scores(Highest(2), energies) == [-math.inf, -15.0, -8.0, -5.0]
    assert running_scores(Highest(9), energies) == [-math.inf] * 3 + [-10.0]
    looks = MaxOverLooks(0, 1, centre=(-12.0, -17.0), scale=(2.0, 1.0))
    assert running_scores(looks, energies) == [1.0, 2.0, 2.0, 2.0]
    both = MaxOf((FirstTokens(1), TrailingWindow(2)), centre=(-12.0, -9.0), scale=(1.0, 2.0))
    assert running_scores(both, energies) == [2.0, 2.0, 2.0, 2.0]
    assert running_scores(both, [-20.0, *energies]) == [-8.0, -3.0, -3.0, -2.0, 2.0]


def test_what_starts_half_way_is_seen_by_the_window_and_not_by_the_first_tokens() -> None:
    answer = [-25.0] * 20 + [-6.0] * 4 + [-25.0] * 5
    assert request_scores(TrailingWindow(4), [answer])[0] == -6.0
    assert request_scores(FirstTokens(8), [answer])[0] == -25.0


def test_a_lone_high_position_is_no_refusal_and_two_apart_are() -> None:
    uncertain_once = [-9.0, -13.0, -19.0, -24.0]
    lost_twice = [-8.0, *[-25.0] * 12, -9.0, -25.0]
    assert request_scores(Highest(2), [uncertain_once, lost_twice]).tolist() == [-11.0, -8.5]
    assert request_scores(TrailingWindow(2), [uncertain_once, lost_twice]).tolist() == [-11.0, -16.5]


def test_an_ended_row_stays_as_it_is() -> None:
    running = RunningScore(TrailingWindow(1), 2)
    running.update(np.array([-9.0, -9.0]), np.array([True, False]))
    best = running.update(np.array([100.0, -5.0]), np.array([False, False]))
    assert best.tolist() == [-9.0, -5.0]


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_energies_of_a_broken_model_are_refused_and_do_not_touch_other_rows(broken: float) -> None:
    running = RunningScore(CANDIDATES["early-or-window"].fit(answers(0, 60)), 2)
    alone = running_scores(CANDIDATES["early-or-window"].fit(answers(0, 60)), [-20.0, -21.0, -22.0])
    for energy in (-20.0, -21.0, -22.0):
        best = running.update(np.array([broken, energy]), np.array([False, energy == -22.0]))
    assert best[0] == math.inf
    assert best[1] == alone[-1]


def test_standardisation_is_robust_and_never_divides_by_zero() -> None:
    assert robust(np.array([1.0, 2.0, 3.0, 4.0, 1000.0])) == (3.0, pytest.approx(1.4826))
    assert robust(np.array([5.0, 5.0, 5.0])) == (5.0, 1e-3)


@pytest.mark.parametrize("name", CANDIDATES)
def test_json_round_trip(name: str) -> None:
    score = CANDIDATES[name].fit(answers(0, 30))
    assert score_from_json(score_to_json(score)) == score


@pytest.mark.parametrize("value", [{"kind": "no_such"}, {"kind": "first_tokens", "size": 3}, {}])
def test_an_unknown_score_in_a_file_is_named(value: dict[str, object]) -> None:
    with pytest.raises(GateError, match="recalibrate"):
        score_from_json(value)


def test_no_energies() -> None:
    assert request_scores(FirstTokens(1), []).shape == (0,)
    with pytest.raises(GateError, match="single energy"):
        request_scores(FirstTokens(1), [[-1.0], []])


@pytest.mark.parametrize("name", CANDIDATES)
def test_reordered_rows_go_on_as_the_answers_that_they_continue(name: str) -> None:
    """As beams do: at every position some answers are left out and others go on twice."""
    rng = np.random.default_rng(5)
    score = CANDIDATES[name].fit(answers(1, 30))
    running = RunningScore(score, 4)
    histories: list[list[float]] = [[] for _ in range(4)]
    for _ in range(14):
        energies = rng.normal(-20, 4, size=4)
        histories = [[*history, float(e)] for history, e in zip(histories, energies, strict=True)]
        running.update(energies)
        np.testing.assert_array_equal(running.if_ended(), request_scores(score, histories))
        np.testing.assert_array_equal(running.best, [running_scores(score, [*h, 0.0])[-2] for h in histories])
        rows = rng.integers(0, 4, size=4)
        running.reorder(rows)
        histories = [histories[row] for row in rows]


def test_a_row_that_ended_goes_on_as_ended_when_it_is_moved() -> None:
    running = RunningScore(FirstTokens(3), 2)
    running.update(np.array([-9.0, -1.0]), np.array([True, False]))
    running.reorder(np.array([1, 0]))
    running.update(np.array([-3.0, 5.0]))
    np.testing.assert_array_equal(running.if_ended(), [-2.0, -9.0])
    np.testing.assert_array_equal(running.active, [True, False])
