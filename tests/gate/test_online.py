"""Energies in, decisions out: worked by hand, and row by row the same as the whole answer's running score."""

from __future__ import annotations

import math

import numpy as np
import pytest

from d2unlearn.gate.online import Decision, OnlineGate, Trace, decide
from d2unlearn.gate.score import CANDIDATES, FirstTokens, Highest, TrailingWindow, running_scores


def fed(gate: OnlineGate, *positions: list[float], ended: list[bool] | None = None) -> OnlineGate:
    for energies in positions:
        gate.update(np.array(energies), None if ended is None else np.array(ended))
    return gate


def test_rows_are_refused_end_and_go_on_by_themselves() -> None:
    """Threshold -5 on single energies: row 0 is refused at its second token, row 1 ends with its second, row 2 at the limit."""
    gate = fed(OnlineGate(TrailingWindow(1), -5.0, 3), [-9.0, -8.0, -7.0])
    assert (gate.refused.tolist(), gate.lengths.tolist()) == ([False] * 3, [-1] * 3)
    fed(gate, [-4.0, -6.5, -7.5], ended=[False, True, False])
    fed(gate, [-1.0, -1.0, -6.0])  # nothing of a row that is over counts
    gate.finish()
    assert (gate.refused.tolist(), gate.lengths.tolist()) == ([True, False, False], [2, 2, 3])
    assert gate.decisions() == [
        Decision(True, -9.0, -4.0, -5.0, 1),
        Decision(False, -8.0, -6.5, -5.0, 2),
        Decision(False, -7.0, -6.0, -5.0, 3),
    ]
    assert gate.traces([[20, 21, 22], [23, 24, 0], [25, 26, 27]]) == [
        Trace((-9.0, -4.0), (20, 21)),
        Trace((-8.0, -6.5), (23, 24)),
        Trace((-7.0, -7.5, -6.0), (25, 26, 27)),
    ]


def test_a_lead_is_added_to_a_row_s_score_and_goes_with_it() -> None:
    """Threshold -5: -6 is refused with a lead of 2, not with 0.5; in two rows of one request, then in other places."""
    leads = np.array([0.5, 2.0])
    gate = fed(OnlineGate(TrailingWindow(1), -5.0, 4, np.array([-9.0, -8.0]), leads), [-6.0, -9.5, -6.0, -9.5])
    assert gate.refused.tolist() == [False, False, True, False]
    assert [decision.score for decision in gate.decisions()] == [-5.5, -8.5, -4.0, -6.0]
    gate.reorder(np.array([3, 0, 1, 2]))
    fed(gate, [-6.5] * 4)
    assert gate.refused.tolist() == [True, False, False, True]
    assert decide(TrailingWindow(1), -5.0, [-6.0], lead=2.0) == Decision(True, -6.0, -4.0, -5.0, 0)
    ending = fed(OnlineGate(FirstTokens(4), -5.0, 2, leads=np.array([0.0, 2.0])), [-6.0, -6.0])
    assert ending.refused_if_ended().tolist() == [False, True]
    ending.finish()
    assert ending.refused.tolist() == [False, True]


def test_the_look_at_the_end_is_made_there_and_asked_for_before() -> None:
    """Four positions are to be looked at; these answers have two."""
    gate = fed(OnlineGate(FirstTokens(4), -5.0, 2), [-9.0, -4.0], [-9.0, -4.0])
    assert gate.refused_if_ended().tolist() == [False, True]
    assert gate.refused.tolist() == [False, False]
    gate.finish()
    assert gate.refused.tolist() == [False, True]
    assert [decision.n_tokens for decision in gate.decisions()] == [2, 1]


def test_without_a_score_energies_are_noted_and_nothing_is_refused() -> None:
    gate = fed(OnlineGate(None, math.inf, 2), [3.0, math.nan], ended=[True, False])
    fed(gate, [1.0, 2.0])
    gate.finish()
    assert gate.decisions()[0] == Decision(False, 3.0, None, None, 1)
    assert not gate.refused_if_ended().any()
    assert gate.lengths.tolist() == [1, 2]
    assert gate.showable() == 2


@pytest.mark.parametrize("energy", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_refused(energy: float) -> None:
    assert decide(Highest(2), 1e9, [-9.0, energy, -9.0]).refused


@pytest.mark.parametrize(
    ("score", "hold_back", "shown"),
    [
        (TrailingWindow(1), 0, [1, 2, 3, 4]),
        (TrailingWindow(3), 0, [0, 0, 3, 4]),
        (TrailingWindow(2), 1, [0, 1, 2, 3]),
        (TrailingWindow(1), 9, [0, 0, 0, 0]),
    ],
)
def test_what_a_stream_may_show(score: TrailingWindow, hold_back: int, shown: list[int]) -> None:
    gate, found = OnlineGate(score, 0.0, 1), []
    for _ in shown:
        gate.update(np.array([-9.0]))
        found.append(gate.showable(hold_back))
    assert found == shown


@pytest.mark.parametrize("name", CANDIDATES)
def test_a_decision_is_where_the_running_score_first_exceeds_the_threshold(name: str) -> None:
    rng = np.random.default_rng(0)
    answers = [rng.normal(-6, 2, size=rng.integers(1, 13)).tolist() for _ in range(40)]
    score = CANDIDATES[name].fit(answers)
    finals = [max(running_scores(score, energies)) for energies in answers]
    threshold = float(np.median(finals)) + 1e-6
    refused = 0
    for energies in answers:
        scores = running_scores(score, energies)
        place = next((t for t, value in enumerate(scores) if value > threshold), None)
        wanted = (place is not None, scores[-1 if place is None else place], len(energies) if place is None else place)
        found = decide(score, threshold, energies)
        assert (found.refused, found.score, found.n_tokens) == wanted
        assert (found.energy, found.threshold) == (energies[0], threshold)
        refused += found.refused
    assert 0 < refused < 40


def test_hypotheses_that_change_places_keep_their_own_energies() -> None:
    """Row 0 goes on twice, row 2 is left out; each is judged as if it had been alone."""
    score, paths = TrailingWindow(2), {0: [-9.0, -8.0], 1: [-9.0, -3.0], 2: [-7.0, -6.0]}
    gate = fed(OnlineGate(score, -5.0, 3), [-9.0, -7.0, -1.0])
    gate.reorder(np.array([0, 0, 1]))
    fed(gate, [-8.0, -3.0, -6.0])
    assert gate.refused_if_ended().tolist() == [decide(score, -5.0, path).refused for path in paths.values()]
    gate.reorder(np.array([2, 1, 1]))
    fed(gate, [-3.5, -3.0, -9.0])
    assert gate.refused.tolist() == [True, True, False]
