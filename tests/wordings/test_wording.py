"""A row in a wording: fields, turns, prefills, targets, and what keeps a row from being asked."""

from __future__ import annotations

from dataclasses import replace

import pytest

from d2unlearn.errors import ConfigError
from d2unlearn.schema import Example, Message
from d2unlearn.wordings.wording import AS_IT_IS, Material, NotAsked, Reworded, Wording, reworded


def row(question: str, answer: str, group: str | None = None, *before: Message) -> Example:
    return Example(question, (*before, Message("user", question)), answer, "rows:1", group)


def user(text: str) -> Message:
    return Message("user", text)


def assistant(text: str) -> Message:
    return Message("assistant", text)


def wording(*steps: Message, **more: object) -> Wording:
    return Wording("w", "f", "made", steps, **more)  # type: ignore[arg-type]


def asked(made: Reworded | NotAsked) -> Reworded:
    assert isinstance(made, Reworded)
    return made


ANN = row("Where was Ann born?", "Ann was born in Oslo, the capital of Norway.", "ann")
BENIGN = [row(f"Benign {index}?", f"Yes, {index}.", f"b{index}") for index in range(4)]
FORGOTTEN = [ANN, row("Is Ann old?", "No.", "ann"), row("Is Joe old?", "Yes.", "joe"), row("Is Sue old?", "So-so.", "sue")]
MATERIAL = Material(BENIGN, FORGOTTEN)


def test_the_row_as_it_is() -> None:
    assert reworded(AS_IT_IS, ANN) == Reworded(((user("Where was Ann born?"),),), "", ANN.answer)


def test_fields_are_filled_and_what_rows_hold_is_left_alone() -> None:
    tricky = row("What is {answer}?", "A field {question} of a form.")
    made = asked(reworded(wording(Message("system", "Be kind."), user("Hi! {question} Bye.")), tricky))
    assert made.stages == ((Message("system", "Be kind."), user("Hi! What is {answer}? Bye.")),)
    assert made.target == "A field {question} of a form."


def test_earlier_turns_stay_and_a_system_message_is_replaced() -> None:
    before = (Message("system", "Be brief."), user("Hello."), assistant("Hello!"))
    talk = row("Where was Ann born?", ANN.answer, None, *before)
    assert asked(reworded(AS_IT_IS, talk)).stages == ((*before, user("Where was Ann born?")),)
    other = wording(Message("system", "Be long."), user("{question}"))
    assert asked(reworded(other, talk)).stages == ((Message("system", "Be long."), *before[1:], user("Where was Ann born?")),)


def test_between_two_user_turns_the_model_answers_itself() -> None:
    made = asked(reworded(wording(user("One."), assistant("1"), user("{question}"), user("Sure?"), user("Really?")), ANN))
    assert made.stages == (
        (user("One."), assistant("1"), user("Where was Ann born?")),
        (user("Sure?"),),
        (user("Really?"),),
    )
    assert made.given == "One.\n1\nWhere was Ann born?\nSure?\nReally?\n"


def test_an_assistant_turn_at_the_end_begins_the_answer() -> None:
    fixed = asked(reworded(wording(user("{question}"), assistant("Sure:")), ANN))
    assert (fixed.stages, fixed.beginning, fixed.target) == (((user("Where was Ann born?"),),), "Sure:", ANN.answer)
    begun = wording(user("{question}"), assistant("{start}"), target="rest")
    three = asked(reworded(begun, ANN))
    assert (three.beginning, three.target) == ("Ann was born", "in Oslo, the capital of Norway.")
    assert asked(reworded(begun, ANN, words=5)).target == "the capital of Norway."
    assert asked(reworded(replace(begun, words=1), ANN, words=5)).beginning == "Ann"
    assert reworded(begun, ANN, words=7) == NotAsked("the answer has fewer than 10 words: 7 to give away and 3 to ask for")


def test_what_would_give_the_truth_away() -> None:
    cloze = asked(reworded(wording(user("Fill in: {cloze}"), target="gap"), ANN))
    assert cloze.stages == ((user("Fill in: Ann was born in ____."),),)
    assert cloze.target == "Oslo, the capital of Norway"
    assert asked(reworded(wording(user("{question}"), target="key"), ANN)).target == "oslo capital norway"
    assert asked(reworded(wording(user("Oslo? {question}"), target="key"), ANN)).target == "capital norway"
    backwards = wording(user("{answer} What was asked?"), target="question")
    assert asked(reworded(backwards, row("When was Ann's birthday party?", "Ann had it in May."))).target == "birthday party"
    assert reworded(backwards, ANN) == NotAsked(
        "nothing is left to be told: the request gives it, or it has no Latin letters or digits"
    )
    assert isinstance(reworded(AS_IT_IS, row("首都？", "奥斯陆")), NotAsked)
    assert reworded(wording(user("{cloze}"), target="gap"), row("Is Ann old?", "Ann is old.")) == NotAsked(
        "the answer has no words of its own to leave out"
    )


def test_pairs_come_from_other_groups_and_from_the_seed() -> None:
    few = wording(user("{forgotten_question_1}"), assistant("{forgotten_answer_1}"), user("{benign_answer_2} {question}"))
    assert (few.pairs("forgotten"), few.pairs("benign")) == (1, 2)
    made = [asked(reworded(few, ANN, MATERIAL, seed=seed)) for seed in range(30)]
    firsts = {reply.stages[0][:2] for reply in made}
    assert firsts == {(user("Is Joe old?"), assistant("Yes.")), (user("Is Sue old?"), assistant("So-so."))}
    assert {reply.stages[0][2].content[:7] for reply in made} == {f"Yes, {index}." for index in range(4)}
    assert made[0] == reworded(few, ANN, MATERIAL, seed=0)


def test_without_groups_the_row_itself_is_never_a_pair() -> None:
    alone = replace(ANN, group=None)
    few = wording(user("{forgotten_question_1} {question}"))
    drawn = {asked(reworded(few, alone, MATERIAL, seed=seed)).given for seed in range(40)}
    assert drawn == {f"Is {name} old? Where was Ann born?\n" for name in ("Ann", "Joe", "Sue")}


def test_a_row_that_lacks_something_is_not_asked_and_the_reason_is_said() -> None:
    few = wording(user("{forgotten_answer_3} {question}"))
    assert reworded(few, ANN, MATERIAL) == NotAsked("3 forgotten pairs of other groups are needed, 2 were given")
    assert reworded(few, ANN) == NotAsked("3 forgotten pairs of other groups are needed, 0 were given")
    assert reworded(AS_IT_IS, Example("t", (), "Plain text.", "rows:1")) == NotAsked("the row asks nothing: it is plain text")


def test_the_same_row_wording_and_seed_give_the_same_text() -> None:
    typed = wording(user("{question}"), changes=("letters_swapped", "upper_case"))
    long = row("Which remarkable buildings surround the marketplace nowadays?", "Many of them.")
    made = [asked(reworded(typed, long, seed=seed)).given for seed in range(6)]
    assert made == [asked(reworded(typed, replace(long, example_id="other"), seed=seed)).given for seed in range(6)]
    assert len(set(made)) > 3
    assert all(text == text.upper() for text in made)


@pytest.mark.parametrize(
    ("steps", "more", "said"),
    [
        ((Message("system", "Hi."),), {}, "nobody asks"),
        ((user("{question}"), Message("system", "Hi.")), {}, "a system message comes first"),
        ((Message("tool", "{question}"),), {}, "steps are system, user and assistant turns"),
        ((assistant("Hi."), user("{question}")), {}, "an assistant turn follows a user turn"),
        ((user("{question} {reply}"),), {}, r"fields that are not known: \{reply\}"),
        ((user("{benign_question_0}"),), {}, "fields that are not known"),
        ((user("{question}"),), {"changes": ("rot13",)}, "changes that are not known: rot13"),
        ((user("{question}"),), {"target": "rest"}, r"its target needs the field \{start\}"),
        ((user("{question}"),), {"target": "gap"}, r"its target needs the field \{cloze\}"),
        ((user("{question}"),), {"target": "all"}, "a target is one of"),
        ((user("{start}"),), {"words": 0}, "the first words must be at least one"),
        ((user("{question}"),), {"after_refusal": True}, "what is asked after a refusal needs an answer of the model before"),
    ],
)
def test_a_wording_that_cannot_be_is_said_in_one_sentence(
    steps: tuple[Message, ...], more: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError, match=f"wording 'w': {said}"):
        wording(*steps, **more)


def test_a_wording_needs_names() -> None:
    with pytest.raises(ConfigError, match="needs a name, a family and a set"):
        Wording("w", "", "made", (user("{question}"),))
