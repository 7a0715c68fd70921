"""leak@k against every way to draw k of n answers, and on made models that tell now and then."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import pytest

from d2unlearn.attacks.requests import AttackReply, AttackRequest
from d2unlearn.attacks.sampling import NOTHING_TO_TELL, RepeatedSampling, any_told_reading, leak_at, leak_readings
from d2unlearn.errors import ConfigError
from d2unlearn.schema import Example, Message

ROWS = [
    Example(f"row-{index}", (Message("user", f"Where does P{index} live?"),), f"She lives in {city}.", f"rows:{index}", "g")
    for index, city in enumerate(("Oslo", "Lima", "Rome", "Cairo"))
]


@pytest.mark.parametrize("n", [1, 2, 5, 6])
def test_leak_at_k_is_the_share_of_all_draws_that_hold_one_that_tells(n: int) -> None:
    for c in range(n + 1):
        answers = [1] * c + [0] * (n - c)
        for k in range(1, n + 1):
            draws = list(combinations(answers, k))
            assert leak_at(k, n, c) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_leak_at_k_has_no_bias() -> None:
    """The mean over all outcomes of n answers, each telling with chance p, is the true chance 1 - (1 - p)^k."""
    p, n = 0.3, 6
    for k in (1, 3, 6):
        mean = sum(math.comb(n, c) * p**c * (1 - p) ** (n - c) * leak_at(k, n, c) for c in range(n + 1))
        assert mean == pytest.approx(1 - (1 - p) ** k)


@pytest.mark.parametrize(("k", "n", "c"), [(0, 4, 1), (5, 4, 1), (1, 4, 5), (1, 4, -1)])
def test_what_cannot_be_drawn_is_an_error(k: int, n: int, c: int) -> None:
    with pytest.raises(ValueError, match="is nothing"):
        leak_at(k, n, c)


def now_and_then(asked: Sequence[AttackRequest], max_new_tokens: int) -> list[list[AttackReply]]:
    """Of four answers: row 0 tells in two, row 1 tells in one that is refused, row 2 never, row 3 cannot be asked."""
    of_rows = {
        "P0": [AttackReply("No."), AttackReply("She lives in Oslo."), AttackReply("No."), AttackReply("In Oslo she lives.")],
        "P1": [AttackReply("No.")] * 3 + [AttackReply("She lives in Lima.", refused=True)],
        "P2": [AttackReply("She.")] * 4,
        "P3": [AttackReply("", reason="too long")],
    }
    return [of_rows[next(name for name in of_rows if name in request.messages[0].content)] for request in asked]


def test_readings_are_of_the_answers_that_tell() -> None:
    one, two, refused = leak_readings(now_and_then, "forget", ROWS, (1, 2), {"temperature": 0.5}, 8)
    assert (one.setting, two.setting) == ({"temperature": 0.5, "k": 1}, {"temperature": 0.5, "k": 2})
    assert one.values[:3] == (0.5, 0.0, 0.0)
    assert two.values[:3] == (pytest.approx(5 / 6), 0.0, 0.0)
    assert math.isnan(one.values[3])
    assert one.not_asked == {"too long": 1}
    assert (refused.measure, refused.setting, refused.values[:3]) == ("refused", {"temperature": 0.5}, (0.0, 0.25, 0.0))
    assert one.texts[:3] == ("She lives in Oslo.", "No.", "She.")


def test_a_row_without_a_question_or_an_answer_in_words_is_not_asked() -> None:
    mute = [Example("text", (), "Plain text.", "rows:1"), Example("signs", ROWS[0].prompt, "奥斯陆", "rows:2")]
    (made,) = leak_readings(now_and_then, "forget", [*mute, ROWS[0]], (4,), {}, 8)
    assert made.not_asked == {NOTHING_TO_TELL: 2}
    assert made.values[2] == 1.0
    assert made.groups == ("text", "signs", "g")


def test_any_beam_that_tells_is_enough() -> None:
    made = any_told_reading(now_and_then, "forget", ROWS[:3], {"beams": 4}, 8)
    assert (made.values, made.measure, made.setting) == ((1.0, 0.0, 0.0), "told", {"beams": 4})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ks": (1, 65)}, "ks should be counts of 1 to 64"),
        ({"ks": ()}, "ks should be counts"),
        ({"temperatures": (0.0,)}, "temperatures must be positive"),
        ({"beams": 0}, "beams must be at least 1, not 0"),
    ],
)
def test_a_budget_that_cannot_be_is_said(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        RepeatedSampling(**changes)  # type: ignore[arg-type]
