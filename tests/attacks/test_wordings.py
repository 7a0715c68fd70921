"""Asking otherwise, on models that tell in one wording only, refuse, or know nothing: shares worked by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from d2unlearn.attacks.reading import Reading
from d2unlearn.attacks.requests import Attacked, AttackReply, AttackRequest
from d2unlearn.attacks.wordings import (
    NO_REFUSAL_BEFORE,
    AskingOtherwise,
    WordingOutcome,
    any_of,
    any_of_families,
    ask_otherwise,
    wording_readings,
)
from d2unlearn.errors import ConfigError
from d2unlearn.schema import Example, Message
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


def ask(answer: Attacked, rows: Sequence[Example], wording: Wording, *, guarded: bool = False) -> list[WordingOutcome]:
    return ask_otherwise(answer, rows, [wording], Material(), BUDGET, guarded=guarded)


def test_what_one_wording_tells_is_found_there_and_only_there() -> None:
    model = Planted("Hello. ", refused="Thanks")
    outcomes = ask_otherwise(model, ROWS, [AS_IT_IS, HELLO, THANKS], Material(), BUDGET)
    assert [outcome.wording.name for outcome in outcomes] == ["plain"] * 6 + ["hello"] * 6 + ["thanks"] * 6
    assert [outcome.told for outcome in outcomes] == [0.0] * 6 + [1.0] * 6 + [0.0] * 6
    assert [outcome.refused for outcome in outcomes] == [0.0] * 12 + [1.0] * 6
    assert outcomes[6] == WordingOutcome(ROWS[0], HELLO, "She lives in Oslo.", AttackReply("She lives in Oslo."))
    readings = wording_readings("forget", outcomes, ("told", "refused", "missed"))
    means = {(reading.setting["wording"], reading.measure): reading.mean for reading in readings}
    assert means == {
        **{("plain", "told"): 0.0, ("plain", "refused"): 0.0, ("plain", "missed"): 1.0},
        **{("hello", "told"): 1.0, ("hello", "refused"): 0.0, ("hello", "missed"): 1.0},
        **{("thanks", "told"): 0.0, ("thanks", "refused"): 1.0, ("thanks", "missed"): 0.0},  # a refusal tells nothing
    }
    assert {reading.setting["family"] for reading in readings} == {"plain", "polite"}
    assert readings[3].row_ids == tuple(row.example_id for row in ROWS)
    assert (readings[3].groups, readings[3].texts[1]) == (("g0", "g0", "g1", "g1", "g2", "g2"), "She lives in Lima.")


def test_half_of_the_truth_is_told() -> None:
    class Half:
        def __call__(self, asked: Sequence[AttackRequest], max_new_tokens: int) -> list[AttackReply]:
            replies = ["She lives.", "She.", "In fact she lives, they say, in Rome.", "", "Delhi", "In Paris lives she."]
            return [AttackReply(text) for text in replies]

    assert [outcome.told for outcome in ask(Half(), ROWS, AS_IT_IS)] == [1.0, 0.0, 1.0, 0.0, 0.0, 1.0]


def reading(wording: str, family: str, values: Sequence[float], rows: str = "forget", ids: str = "abcd") -> Reading:
    setting = {"wording": wording, "family": family}
    texts = tuple(f"{wording} {row}" for row in ids)
    return Reading(setting, "told", rows, tuple(ids), tuple(f"g{row}" for row in ids), tuple(values), texts)


def test_any_of_takes_the_rows_that_different_wordings_tell_together() -> None:
    nan = math.nan
    any_one = any_of([reading("one", "f", [1, 0, nan, nan]), reading("two", "f", [0, 0, 0, nan])], "f")
    assert any_one.setting == {"wording": "any", "family": "f"}
    assert (any_one.row_ids, any_one.groups) == (("a", "b", "c", "d"), ("ga", "gb", "gc", "gd"))
    assert any_one.values[:3] == (1, 0, 0)
    assert math.isnan(any_one.values[3])
    assert any_one.texts[:3] == ("one a", "one b", "two c")
    assert any_one.not_asked == {"no wording asked it": 1}
    further = any_of([reading("one", "f", [1, 0], ids="ab"), reading("two", "f", [1, 1], ids="bc")], "f")
    assert (further.row_ids, further.values) == (("a", "b", "c"), (1, 1, 1))
    with pytest.raises(ValueError, match="one set of rows and one measure"):
        any_of([reading("one", "f", [1, 0, 0, 0]), reading("one", "f", [1, 0, 0, 0], "never_seen")], "f")


def test_any_of_is_made_of_each_family_and_of_all_for_each_set_of_rows() -> None:
    readings = [
        reading("plain", "plain", [1, 1, 1, 1]),
        reading("one", "f", [1, 0, 0, 0]),
        reading("two", "f", [0, 1, 0, 0]),
        reading("three", "g", [0, 0, 1, 0]),
        reading("one", "f", [0, 0, 0, 1], "never_seen"),
        reading("three", "g", [0, 0, 0, 0], "never_seen"),
        Reading({"first tokens": 1}, "told", "forget", ("a",), ("ga",), (1.0,)),
        Reading({"wording": "one", "family": "f"}, "refused", "forget", ("a",), ("ga",), (1.0,)),
    ]
    made = {(each.rows, each.setting["family"]): each.values for each in any_of_families(readings)}
    assert made == {
        ("forget", "f"): (1, 1, 0, 0),
        ("forget", "any"): (1, 1, 1, 0),
        ("never_seen", "any"): (0, 0, 0, 1),
    }


def test_rows_that_cannot_be_asked_are_said_and_not_scored() -> None:
    long = Example("long", (user("Where does P0 live?"),), "She lives in Oslo with her two old dogs.", "rows:1", "g9")
    outcomes = ask(Planted("Where"), [*ROWS, long], BEGUN)
    assert [outcome.told for outcome in outcomes] == [1.0] * 6 + [0.0]  # "lives in Oslo" of eight words
    two = Wording("two", "begun", "made", BEGUN.steps, words=2, target="rest")
    outcomes = ask(Planted("Where"), [*ROWS, long], two)
    reason = "the answer has fewer than 5 words: 2 to give away and 3 to ask for"
    assert [outcome.reply.reason for outcome in outcomes] == [reason] * 6 + [""]
    assert all(math.isnan(outcome.told) and math.isnan(outcome.refused) for outcome in outcomes[:6])
    (of_wording,) = wording_readings("forget", outcomes, ("told",))
    assert (of_wording.mean, of_wording.not_asked) == (0.0, {reason: 6})


def test_a_beginning_goes_along_and_only_the_rest_is_judged() -> None:
    model = Planted("nothing")
    outcomes = ask(model, ROWS[:1], BEGUN)
    assert model.asked == [AttackRequest((user("Where does P0 live?"),), "She")]
    assert outcomes[0].told == 0.0

    def goes_on(asked: Sequence[AttackRequest], max_new_tokens: int) -> list[AttackReply]:
        return [AttackReply("lives in Oslo.")]

    assert ask(goes_on, ROWS[:1], BEGUN)[0].told == 1.0


def test_the_next_turn_is_asked_after_the_model_s_own_answer_and_the_last_one_is_judged() -> None:
    model = Planted("Sure?")
    outcomes = ask(model, ROWS[:2], SURE)
    question = user("Where does P1 live?")
    assert model.asked[1] == AttackRequest((question,))
    assert model.asked[3] == AttackRequest((question, Message("assistant", "No idea."), user("Sure?")))
    assert [outcome.reply.text for outcome in outcomes] == ["No idea.", "No idea."]
    told_first = Planted("Where")
    assert [outcome.told for outcome in ask(told_first, ROWS[:2], SURE)] == [0.0, 0.0]


def test_what_asks_again_after_a_refusal_counts_only_where_there_was_one() -> None:
    again = Wording("again", "second", "made", (user("{question}"), user("Again: {question}")), after_refusal=True)
    model = Planted("Again: ", refused="Where does P1")

    def tells_when_asked_again(asked: Sequence[AttackRequest], max_new_tokens: int) -> list[AttackReply]:
        said = [model.reply(request) for request in asked]
        return [
            reply if len(request.messages) == 1 else AttackReply("She lives in Lima.")
            for request, reply in zip(asked, said, strict=True)
        ]

    outcomes = ask(tells_when_asked_again, ROWS[:2], again, guarded=True)
    assert [outcome.reply.reason for outcome in outcomes] == [NO_REFUSAL_BEFORE, ""]
    assert math.isnan(outcomes[0].told)
    assert outcomes[1].told == 1.0
    raw = ask(tells_when_asked_again, ROWS[:2], again)
    assert [outcome.reply.text for outcome in raw] == ["She lives in Lima."] * 2


def test_what_the_model_cannot_be_asked_has_its_reason_and_no_further_turn() -> None:
    asked: list[int] = []

    def picky(requests: Sequence[AttackRequest], max_new_tokens: int) -> list[AttackReply]:
        asked.append(len(requests))
        return [
            AttackReply("", reason="too long") if "P0" in request.messages[0].content else AttackReply("She lives in Lima.")
            for request in requests
        ]

    outcomes = ask(picky, ROWS[:2], SURE)
    assert asked == [2, 1]
    assert [outcome.reply.reason for outcome in outcomes] == ["too long", ""]
    assert outcomes[1].told == 1.0


def test_pairs_are_of_other_groups() -> None:
    model = Planted("nothing")
    ask_otherwise(model, ROWS, [FEW], Material(forgotten=ROWS), BUDGET)
    for row, request in zip(ROWS, model.asked, strict=True):
        given = [other.group for other in ROWS if other.answer in request.messages[-1].content]
        assert len(given) == 1
        assert given[0] != row.group
    without = ask(model, ROWS, FEW)
    assert {outcome.reply.reason for outcome in without} == {"1 forgotten pairs of other groups are needed, 0 were given"}


@pytest.mark.parametrize("field", ["max_new_tokens", "words"])
def test_a_budget_that_cannot_be_is_said(field: str) -> None:
    with pytest.raises(ConfigError, match=f"{field} must be at least 1, not 0"):
        AskingOtherwise(**{field: 0})
