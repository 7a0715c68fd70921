"""One position at a time: decisions by position and tokens, never by how often an engine asks."""

from __future__ import annotations

import math

import numpy as np
import pytest

from d2unlearn.gate.score import FirstTokens, Highest, TrailingWindow, running_scores
from d2unlearn.generation import stepwise
from d2unlearn.generation.stepwise import Session, Sessions, TokenConstraint
from d2unlearn.refusals import refusal_index

from .ways import ENDS, WORDS, rule

PROMPT = [20, 21, 22]
REFUSAL = WORDS.refusals[refusal_index(0, PROMPT, 3)]


def session(made: object, limit: int | None = None) -> Session:
    return Session(made, WORDS, PROMPT, ENDS, limit)  # type: ignore[arg-type]


def words(each: Session, start: int, n: int) -> list[int | None]:
    return [each.judge(position, -1.0).forced for position in range(start, start + n)]


def test_a_prompt_that_is_refused_is_answered_with_the_refusal_and_its_end() -> None:
    each = session(rule(FirstTokens(1), -5.0))
    assert words(each, 0, len(REFUSAL) + 3) == [*REFUSAL, ENDS[0], ENDS[0], ENDS[0]]


def test_an_answer_that_is_refused_later_breaks_the_line_first() -> None:
    each = session(rule(Highest(2), -5.0))
    assert [each.judge(position, energy) for position, energy in enumerate([-9.0, -8.0])] == [TokenConstraint(None)] * 2
    assert words(each, 2, len(REFUSAL) + 2) == [*WORDS.line_break, *REFUSAL, ENDS[0]]
    assert each.refused_at == 2


def test_refused_is_where_the_running_score_first_exceeds_the_threshold() -> None:
    rng = np.random.default_rng(0)
    places = set()
    for _ in range(40):
        energies = rng.normal(-6, 2, size=12).tolist()
        each = session(rule(TrailingWindow(3), -4.5))
        for position, energy in enumerate(energies):
            each.judge(position, energy)
        scores = running_scores(TrailingWindow(3), energies)
        assert each.refused_at == next((place for place, score in enumerate(scores) if score > -4.5), None)
        places.add(each.refused_at)
    assert None in places
    assert len(places) > 4


def test_a_position_that_is_asked_for_again_counts_once_and_with_its_last_energy() -> None:
    """A prompt in pieces: every piece asks for position 0, and only the last is the prompt's end."""
    each = session(rule(Highest(2), -5.0))
    for energy in (-1.0, 3.0, -2.0, -9.0):
        each.judge(0, energy)
    assert each.refused_at is None
    assert each.energies == [-9.0]
    assert session(rule(FirstTokens(1), -5.0)).judge(0, -1.0).forced == REFUSAL[0]
    wrong = session(rule(FirstTokens(1), -5.0))
    assert [wrong.judge(0, energy).forced for energy in (-1.0, -9.0)] == [REFUSAL[0], None]
    each.judge(1, -1.0)
    each.judge(2, -1.0)
    assert each.refused_at == 2
    each.judge(2, -9.0)
    each.judge(1, -9.0)  # tokens that were taken back
    assert (each.refused_at, each.energies) == (None, [-9.0, -9.0])


def test_positions_that_nobody_has_seen_are_refused() -> None:
    each = session(rule(Highest(2), -5.0))
    assert each.judge(4, -9.0).forced == WORDS.line_break[0]
    assert each.judge(5, -9.0).forced == REFUSAL[0]
    assert each.judge(2, -9.0).forced is not None


@pytest.mark.parametrize("energy", [math.nan, math.inf, -math.inf])
def test_an_energy_that_is_no_number_is_refused(energy: float) -> None:
    assert session(rule(Highest(2), 1e9)).judge(0, energy).forced == REFUSAL[0]


def test_an_answer_does_not_end_where_the_look_at_its_end_would_refuse() -> None:
    """Four positions are to be looked at; an answer of one token is looked at when it ends."""
    each = session(rule(FirstTokens(4), -5.0))
    assert each.judge(0, -1.0) == TokenConstraint(None, no_end=True)
    assert each.judge(1, -20.0) == TokenConstraint(None)
    limited = session(rule(FirstTokens(4), -5.0), limit=2)
    assert limited.judge(0, -1.0) == TokenConstraint(None, no_end=True)
    assert limited.judge(1, -2.0).forced == WORDS.line_break[0]


def run(sessions: Sessions, energies: list[float], tokens: list[int], *, lost: int | None = None) -> list[int | None]:
    """The forced tokens of an answer whose session the engine forgets after `lost` tokens."""
    each, made = sessions.begin(PROMPT, [], ENDS, None), list[int | None]()
    for position, energy in enumerate(energies):
        if position == lost:
            each = sessions.begin(PROMPT, tokens[:position], ENDS, None)
        made.append(sessions.judge(each, position, tokens[position - 1] if position else None, energy).forced)
    return made


def test_a_request_that_the_engine_forgot_is_found_by_its_tokens() -> None:
    energies, tokens = [-9.0, -1.0, -9.0, -1.0, -9.0, -9.0], [30, 31, 32, 33, 34, 35]
    wanted = run(Sessions(rule(Highest(2), -5.0), WORDS), energies, tokens)
    assert wanted == [None, None, None, *WORDS.line_break, *[*REFUSAL, ENDS[0]][:2]]
    for lost in range(1, 6):
        assert run(Sessions(rule(Highest(2), -5.0), WORDS), energies, tokens, lost=lost) == wanted


def test_a_request_that_nobody_remembers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stepwise, "SESSIONS_KEPT", 1)
    sessions = Sessions(rule(Highest(2), 1e9), WORDS)
    first = sessions.begin(PROMPT, [], ENDS, None)
    assert sessions.judge(first, 0, None, -9.0).forced is None
    other = sessions.begin([50, 51], [], ENDS, None)
    assert sessions.judge(other, 0, None, -9.0).forced is None
    found = sessions.begin([50, 51], [30], ENDS, None)
    assert sessions.judge(found, 1, 30, -9.0).forced is None
    again = sessions.begin(PROMPT, [30], ENDS, None)
    assert sessions.judge(again, 1, 30, -9.0).forced == WORDS.line_break[0]


def test_requests_with_the_same_tokens_are_judged_apart() -> None:
    sessions = Sessions(rule(Highest(2), -5.0), WORDS)
    one, other = (sessions.begin(PROMPT, [], ENDS, None) for _ in range(2))
    for position, energy in enumerate([-9.0, -1.0, -2.0]):
        sessions.judge(one, position, 30 if position else None, energy)
    sessions.judge(other, 0, None, -9.0)
    assert (one.refused_at, other.refused_at) == (2, None)
    assert other.energies == [-9.0]
