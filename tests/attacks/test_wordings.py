"""Asking otherwise, on models that tell in one wording only, refuse, or know nothing: shares worked by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from d2unlearn.attacks.wordings import (
    AskingOtherwise,
    AttackReply,
    AttackRequest,
    WordingOutcome,
    ask_in,
    ask_otherwise,
    drawn_rows,
    summaries_by,
    wordings_summary,
)
from d2unlearn.errors import ConfigError
from d2unlearn.schema import Example, Message
from d2unlearn.stats import binomial_interval, bootstrap_interval
from d2unlearn.wordings.wording import AS_IT_IS, Material, Wording

CITIES = ("Oslo", "Lima", "Rome", "Cairo", "Delhi", "Paris")
ROWS = [
    Example(
        f"row-{index}", (Message("user", f"Where does P{index} live?"),), f"She lives in {city}.", "rows:1", f"g{index // 2}"
    )
    for index, city in enumerate(CITIES)
]
ANSWERS = {row.question: row.answer for row in ROWS}
BUDGET = AskingOtherwise(max_new_tokens=5)


def user(text: str) -> Message:
    return Message("user", text)


HELLO = Wording("hello", "polite", "made", (user("Hello. {question}"),))
THANKS = Wording("thanks", "polite", "made", (user("{question} Thanks."),))
BEGUN = Wording("begun", "begun", "made", (user("{question}"), Message("assistant", "{start}")), words=1, target="rest")
SURE = Wording("sure", "second", "made", (user("{question}"), user("Sure?")))
FEW = Wording("few", "few", "made", (user("{forgotten_question_1} {forgotten_answer_1} {question}"),))


class Planted:
    """Tells the answer to requests that begin with `key`, refuses those that hold `refused`, else knows nothing."""

    def __init__(self, key: str, refused: str = "\0", told: Sequence[str] = CITIES) -> None:
        self.key, self.refused, self.told = key, refused, told
        self.asked: list[AttackRequest] = []

    def __call__(self, asked: Sequence[AttackRequest], max_new_tokens: int) -> list[AttackReply]:
        assert max_new_tokens == 5
        self.asked += asked
        return [self.reply(request) for request in asked]

    def reply(self, request: AttackRequest) -> AttackReply:
        said = request.messages[-1].content
        if self.refused in said:
            return AttackReply("She lives in Oslo, but that is not told.", refused=True)
        answer = next((answer for question, answer in ANSWERS.items() if question in said), "")
        if said.startswith(self.key) and any(city in answer for city in self.told):
            return AttackReply(answer)
        return AttackReply("No idea.")


def test_what_one_wording_tells_is_found_there_and_only_there() -> None:
    model = Planted("Hello. ", refused="Thanks")
    outcomes = ask_otherwise(model, ROWS, [AS_IT_IS, HELLO, THANKS], Material(), BUDGET)
    assert [outcome.wording for outcome in outcomes] == ["plain"] * 6 + ["hello"] * 6 + ["thanks"] * 6
    assert [outcome.told for outcome in outcomes] == [0.0] * 6 + [1.0] * 6 + [0.0] * 6
    assert [outcome.refused for outcome in outcomes] == [0.0] * 12 + [1.0] * 6
    assert outcomes[6] == WordingOutcome("row-0", "g0", "hello", "polite", 1.0, 1.0, 1.0, 0.0, "She lives in Oslo.")
    assert outcomes[12].recall == 0.0  # a refusal tells nothing, whatever the words beside it
    by_wording = summaries_by("wording", outcomes, "forget")
    assert {name: part.told.value for name, part in by_wording.items()} == {"plain": 0.0, "hello": 1.0, "thanks": 0.0}
    by_family = summaries_by("family", outcomes, "forget")
    assert {name: part.told.value for name, part in by_family.items()} == {"plain": 0.0, "polite": 1.0}
    assert by_family["polite"].refusal.value == 0.5
    whole = wordings_summary(outcomes, "forget")
    assert (whole.told.value, whole.told.n, whole.told.better) == (1.0, 6, "lower")
    assert whole.refusal.value == pytest.approx(1 / 3)


def test_half_of_the_truth_is_told_and_all_of_it_is_whole() -> None:
    class Half:
        def __call__(self, asked: Sequence[AttackRequest], max_new_tokens: int) -> list[AttackReply]:
            replies = ["She lives.", "She.", "In fact she lives, they say, in Rome.", "", "Delhi", "In Paris lives she."]
            return [AttackReply(text) for text in replies]

    outcomes = ask_in(Half(), ROWS, AS_IT_IS, Material(), BUDGET)
    assert [outcome.recall for outcome in outcomes] == [0.5, 0.25, 1.0, 0.0, 0.25, 0.5]
    assert [outcome.told for outcome in outcomes] == [1.0, 0.0, 1.0, 0.0, 0.0, 1.0]
    assert [outcome.told_whole for outcome in outcomes] == [0.0, 0.0, 1.0, 0.0, 0.0, 0.0]


def test_intervals_are_over_groups() -> None:
    model = Planted("Hello. ", told=("Oslo", "Lima", "Cairo"))
    outcomes = ask_otherwise(model, ROWS, [HELLO, THANKS], Material(), AskingOtherwise(max_new_tokens=5, seed=3))
    told = [1.0, 1.0, 0.0, 1.0, 0.0, 0.0]
    groups = ["g0", "g0", "g1", "g1", "g2", "g2"]
    summary = wordings_summary(outcomes, "forget", seed=3)
    expected = bootstrap_interval(told, groups=groups, seed=3)
    assert (summary.told.value, summary.told.low, summary.told.high, summary.told.n) == tuple(expected)
    assert expected != bootstrap_interval(told, seed=3)
    none = summaries_by("wording", outcomes, "forget", seed=3)["thanks"].told
    assert (none.value, none.low, none.high, none.n) == tuple(binomial_interval(0, 6))


def test_any_of_takes_the_rows_that_different_wordings_tell_together() -> None:
    class Either:
        def __call__(self, asked: Sequence[AttackRequest], max_new_tokens: int) -> list[AttackReply]:
            first = Planted("Hello. ", told=("Oslo", "Lima"))
            second = Planted("Where", told=("Lima", "Rome"))
            return [max(model.reply(request) for model in (first, second)) for request in asked]

    outcomes = ask_otherwise(Either(), ROWS, [HELLO, THANKS], Material(), BUDGET)
    shares = {name: part.told.value for name, part in summaries_by("wording", outcomes, "forget").items()}
    assert shares == {"hello": pytest.approx(2 / 6), "thanks": pytest.approx(2 / 6)}
    assert wordings_summary(outcomes, "forget").told.value == pytest.approx(3 / 6)


def test_rows_that_cannot_be_asked_are_said_and_not_scored() -> None:
    long = Example("long", (user("Where does P0 live?"),), "She lives in Oslo with her two old dogs.", "rows:1", "g9")
    outcomes = ask_in(Planted("Where"), [*ROWS, long], BEGUN, Material(), BUDGET)
    assert [outcome.told for outcome in outcomes] == [1.0] * 6 + [0.0]  # "lives in Oslo" of eight words
    two = Wording("two", "begun", "made", BEGUN.steps, words=2, target="rest")
    outcomes = ask_in(Planted("Where"), [*ROWS, long], two, Material(), BUDGET)
    reason = "the answer has fewer than 5 words: 2 to give away and 3 to ask for"
    assert [outcome.reason for outcome in outcomes] == [reason] * 6 + [""]
    assert all(math.isnan(outcome.told) and math.isnan(outcome.refused) for outcome in outcomes[:6])
    summary = wordings_summary(outcomes, "forget")
    assert (summary.told.value, summary.told.n, summary.told.unscored) == (0.0, 1, 6)
    assert summary.not_asked == {reason: 6}
    none = wordings_summary(outcomes[:6], "forget")
    assert math.isnan(none.told.value)
    assert none.told.n == 0


def test_a_beginning_goes_along_and_only_the_rest_is_judged() -> None:
    model = Planted("nothing")
    outcomes = ask_in(model, ROWS[:1], BEGUN, Material(), BUDGET)
    assert model.asked == [AttackRequest((user("Where does P0 live?"),), "She")]
    assert outcomes[0].told == 0.0

    def goes_on(asked: Sequence[AttackRequest], max_new_tokens: int) -> list[AttackReply]:
        return [AttackReply("lives in Oslo.")]

    assert ask_in(goes_on, ROWS[:1], BEGUN, Material(), BUDGET)[0].told_whole == 1.0


def test_the_next_turn_is_asked_after_the_model_s_own_answer_and_the_last_one_is_judged() -> None:
    model = Planted("Sure?")
    outcomes = ask_in(model, ROWS[:2], SURE, Material(), BUDGET)
    question = user("Where does P1 live?")
    assert model.asked[1] == AttackRequest((question,))
    assert model.asked[3] == AttackRequest((question, Message("assistant", "No idea."), user("Sure?")))
    assert [outcome.text for outcome in outcomes] == ["No idea.", "No idea."]
    told_first = Planted("Where")
    assert [outcome.told for outcome in ask_in(told_first, ROWS[:2], SURE, Material(), BUDGET)] == [0.0, 0.0]


def test_what_the_model_cannot_be_asked_has_its_reason_and_no_further_turn() -> None:
    asked: list[int] = []

    def picky(requests: Sequence[AttackRequest], max_new_tokens: int) -> list[AttackReply]:
        asked.append(len(requests))
        return [
            AttackReply("", reason="too long") if "P0" in request.messages[0].content else AttackReply("She lives in Lima.")
            for request in requests
        ]

    outcomes = ask_in(picky, ROWS[:2], SURE, Material(), BUDGET)
    assert asked == [2, 1]
    assert [outcome.reason for outcome in outcomes] == ["too long", ""]
    assert outcomes[1].told == 1.0


def test_pairs_are_of_other_groups() -> None:
    model = Planted("nothing")
    ask_in(model, ROWS, FEW, Material(forgotten=ROWS), BUDGET)
    for row, request in zip(ROWS, model.asked, strict=True):
        given = [other.group for other in ROWS if other.answer in request.messages[-1].content]
        assert len(given) == 1
        assert given[0] != row.group
    without = ask_in(model, ROWS, FEW, Material(), BUDGET)
    assert {outcome.reason for outcome in without} == {"1 forgotten pairs of other groups are needed, 0 were given"}


def test_the_budget_draws_rows_by_seed() -> None:
    drawn = {tuple(row.example_id for row in drawn_rows(ROWS, AskingOtherwise(rows=3, seed=seed))) for seed in range(20)}
    assert len(drawn) > 5
    assert all(len(set(ids)) == 3 and list(ids) == sorted(ids) for ids in drawn)
    assert drawn_rows(ROWS, AskingOtherwise(rows=9)) == drawn_rows(ROWS, AskingOtherwise()) == ROWS
    model = Planted("nothing")
    assert len(ask_otherwise(model, ROWS, [AS_IT_IS, HELLO], Material(), AskingOtherwise(2, 5))) == 4


@pytest.mark.parametrize("field", ["rows", "max_new_tokens", "words"])
def test_a_budget_that_cannot_be_is_said(field: str) -> None:
    with pytest.raises(ConfigError, match=f"{field} must be at least 1, not 0"):
        AskingOtherwise(**{field: 0})
