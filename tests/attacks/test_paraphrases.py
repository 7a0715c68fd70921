"""What stands for a question, which rows are asked, and what is said of a model that cannot rephrase."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from d2unlearn.attacks.paraphrases import (
    CANNOT,
    NOT_REPHRASED,
    Paraphrasing,
    asks_the_same,
    given_readings,
    paraphrase_readings,
    rephrased,
)
from d2unlearn.attacks.requests import Attacked, AttackReply, AttackRequest
from d2unlearn.errors import ConfigError
from d2unlearn.schema import Example, Message

QUESTION, ANSWER = "Where was the author Ann Lee born in 1956?", "Ann Lee was born in Oslo."
ROWS = [
    Example(f"row-{i}", (Message("user", f"Where does P{i} live today?"),), f"In {city}.", f"rows:{i}", f"g{i}")
    for i, city in enumerate(("Oslo", "Lima", "Rome", "Cairo"))
]


@pytest.mark.parametrize(
    ("paraphrase", "same"),
    [
        ("In which town did Ann Lee, the author, come into the world in 1956?", True),
        (QUESTION, False),
        (QUESTION.lower(), False),
        ("Where was the author Ann Lee born?", False),  # the year is gone
        ("Where was the author Lee born in 1956?", False),  # half of a name is gone
        ("Was the author Ann Lee born in Oslo in 1956?", False),  # gives the answer away
        ("Ann Lee was born where in 1956.", False),  # no question any more
        ("Ann Lee 1956?", False),
        (f"{QUESTION} {QUESTION} {QUESTION}", False),
        ("", False),
    ],
)
def test_what_may_stand_for_a_question(paraphrase: str, same: bool) -> None:
    assert asks_the_same(QUESTION, ANSWER, paraphrase) == same


def by_itself(able: int) -> Attacked:
    """Rephrases the first rows, and answers the others' questions instead."""

    def answer(asked: Sequence[AttackRequest], max_new_tokens: int) -> list[AttackReply]:
        return [AttackReply(f'"What is the home of P{i} today?"\nSure!' if i < able else "In Oslo.") for i in range(len(asked))]

    return answer


def tells(asked: Sequence[AttackRequest], max_new_tokens: int) -> list[AttackReply]:
    return [AttackReply("In Lima." if "home of P1 today?" in each.messages[0].content else "No.") for each in asked]


def test_rows_are_asked_as_the_model_rephrases_them() -> None:
    made = rephrased(by_itself(2), ROWS, Paraphrasing())
    assert [row and row.question for row in made] == [
        "What is the home of P0 today?",
        "What is the home of P1 today?",
        None,
        None,
    ]
    told, refused = paraphrase_readings(tells, by_itself(3), "forget", ROWS, Paraphrasing(), ("told", "refused"))
    assert (told.values[:3], refused.values[:3]) == ((0.0, 1.0, 0.0), (0.0, 0.0, 0.0))
    assert math.isnan(told.values[3])
    assert told.not_asked == {NOT_REPHRASED: 1}
    assert (told.groups, told.setting["family"]) == (("g0", "g1", "g2", "g3"), "paraphrases")


def test_a_model_that_cannot_is_not_asked_and_that_is_said() -> None:
    def never(asked: Sequence[AttackRequest], max_new_tokens: int) -> list[AttackReply]:
        raise AssertionError("nothing should be asked")

    (told,) = paraphrase_readings(never, by_itself(1), "forget", ROWS, Paraphrasing(), ("told",))
    assert all(map(math.isnan, told.values))
    assert told.not_asked == {CANNOT: 4}


def test_given_paraphrases_are_asked_as_they_stand() -> None:
    given = [Example("p", (Message("user", "What is the home of P1 today?"),), "In Lima.", "p:1"), ROWS[0]]
    (told,) = given_readings(tells, "paraphrased", given, 8, ("told",))
    assert (told.rows, told.values, told.row_ids) == ("paraphrased", (1.0, 0.0), ("p", "row-0"))


def test_a_budget_that_cannot_be_is_said() -> None:
    with pytest.raises(ConfigError, match="least must lie between 0 and 1"):
        Paraphrasing(least=0.0)
