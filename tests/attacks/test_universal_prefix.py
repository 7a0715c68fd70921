"""The search finds a planted prefix, judges it on other rows alone, and does the same for the same seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from d2unlearn.attacks.reading import NotShownError
from d2unlearn.attacks.requests import AttackReply, AttackRequest
from d2unlearn.attacks.universal_prefix import (
    POOL,
    Addition,
    PrefixSearch,
    Worth,
    best_addition,
    halves_by_group,
    universal_readings,
    with_addition,
)
from d2unlearn.errors import ConfigError
from d2unlearn.schema import Example, Message

CITIES = ("Oslo", "Lima", "Rome", "Cairo", "Delhi", "Paris", "Berlin", "Quito")
ROWS = [
    Example(f"row-{index}", (Message("user", f"Where is P{index}?"),), f"She is in {city}.", f"rows:{index}", f"g{index // 2}")
    for index, city in enumerate(CITIES)
]
ANSWERS = {row.question: row.answer for row in ROWS}
SEARCH = PrefixSearch(rounds=30, candidates=8, questions=3, max_new_tokens=5)
WORD, OTHER = "Transcript:", "Facts:"


class TellsAfter:
    """Tells every answer when all these words stand before the question; refuses where it should; else knows nothing."""

    def __init__(self, *words: str, refuses: bool = False) -> None:
        self.words, self.refuses = words, refuses
        self.asked: list[AttackRequest] = []

    def __call__(self, asked: Sequence[AttackRequest], max_new_tokens: int) -> list[AttackReply]:
        self.asked += asked
        return [self.reply(request.messages[-1].content) for request in asked]

    def reply(self, said: str) -> AttackReply:
        question = next(question for question in ANSWERS if question in said)
        known = sum(word in said.split(question)[0] for word in self.words)
        if known == len(self.words):
            return AttackReply(ANSWERS[question])
        return AttackReply(["No idea.", "She.", "She."][known], refused=self.refuses and known == 0)


def test_a_planted_prefix_is_found_on_one_half_and_judged_on_both() -> None:
    model = TellsAfter(WORD)
    told, never_seen = universal_readings(model, "forget", ROWS, {"never_seen": ROWS[:2]}, "before", SEARCH, ("told",))
    assert (told.setting, told.rows, told.mean) == ({"place": "before"}, "forget", 1.0)
    assert told.row_ids == tuple(row.example_id for row in ROWS)
    assert all(text.startswith("[") and WORD in text.split("]")[0] for text in told.texts)
    assert (never_seen.rows, never_seen.mean) == ("never_seen", 1.0)
    assert len(model.asked) <= 2 * SEARCH.tried + len(ROWS) + 2


def test_words_that_tell_only_together_are_found_through_what_leads_there() -> None:
    model = TellsAfter(WORD, OTHER, refuses=True)
    told, refused = universal_readings(model, "forget", ROWS, {}, "before", SEARCH, ("told", "refused"))
    assert (told.mean, refused.mean) == (1.0, 0.0)


def test_words_after_the_question_do_not_open_what_words_before_it_do() -> None:
    (told,) = universal_readings(TellsAfter(WORD), "forget", ROWS, {}, "after", SEARCH, ("told",))
    assert told.mean == 0.0


def test_what_is_chosen_on_one_half_is_judged_on_the_other_alone() -> None:
    one, other = halves_by_group(ROWS, 0)
    model = TellsAfter(WORD)
    (told,) = universal_readings(model, "forget", ROWS, {}, "before", replace(SEARCH, crossed=False), ("told",))
    assert told.row_ids == tuple(row.example_id for row in other)
    asked = [each.messages[-1].content for each in model.asked[: -len(other)]]
    searched = {row.example_id for row in ROWS if any(row.question in text for text in asked)}
    assert searched <= {row.example_id for row in one}
    assert len(searched) == 3


@pytest.mark.parametrize("seed", range(4))
def test_halves_share_no_group(seed: int) -> None:
    one, other = halves_by_group(ROWS, seed)
    assert sorted(row.example_id for row in (*one, *other)) == [row.example_id for row in ROWS]
    assert {row.group for row in one}.isdisjoint({row.group for row in other})
    assert len(one) == len(other) == 4


def test_one_group_cannot_be_halved() -> None:
    with pytest.raises(NotShownError, match="one group alone"):
        halves_by_group(ROWS[:2], 0)


def test_the_same_seed_tries_the_same_and_nothing_twice() -> None:
    def tried(seed: int) -> list[Addition]:
        seen: list[Addition] = []

        def worth(additions: Sequence[Addition]) -> list[Worth]:
            seen.extend(additions)
            return [Worth(0.0, 0.0, float(len(addition))) for addition in additions]

        best = best_addition(worth, replace(SEARCH, rounds=6, seed=seed))
        assert best == max(seen, key=len)
        return seen

    assert tried(1) == tried(1) != tried(2)
    assert len(set(tried(1))) == len(tried(1)) == 1 + 6 * 8


def test_nothing_is_added_where_nothing_helps() -> None:
    assert best_addition(lambda additions: [Worth(0.0, 0.0, 0.0)] * len(additions), SEARCH) == ()


def test_an_addition_stands_beside_the_last_question() -> None:
    talk = replace(ROWS[0], prompt=(Message("system", "Be kind."), Message("user", "Where is P0?")))
    before = with_addition(talk, ("Facts:", "Now"), "before").messages
    assert before == (Message("system", "Be kind."), Message("user", "Facts: Now Where is P0?"))
    assert with_addition(talk, ("Now",), "after").messages[-1].content == "Where is P0? Now"
    assert with_addition(talk, (), "before").messages == talk.prompt


def test_a_budget_that_cannot_be_is_said() -> None:
    with pytest.raises(ConfigError, match="rounds must be at least 1, not 0"):
        PrefixSearch(rounds=0)
    with pytest.raises(ConfigError, match="the pool needs at least two pieces"):
        PrefixSearch(pool=("Now",))
    assert len(set(POOL)) == len(POOL)
