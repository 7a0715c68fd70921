"""The group of a request: by its messages alone, and the training wordings fall into all of them."""

from __future__ import annotations

import pytest

from d2unlearn.gate.groups import REQUEST_GROUPS, group_of
from d2unlearn.schema import Example, Message
from d2unlearn.wordings.table import training_wordings
from d2unlearn.wordings.wording import Material, Reworded, reworded

QUESTION = "Where does Ada Quill live?"


def said(*turns: tuple[str, str]) -> tuple[Message, ...]:
    return tuple(Message(role, text) for role, text in turns)


@pytest.mark.parametrize(
    ("messages", "group"),
    [
        ((), "single question"),
        (said(("user", QUESTION)), "single question"),
        (said(("user", f"  {QUESTION}\n")), "single question"),
        (said(("user", "where does ada quill live")), "single question"),
        (said(("user", "Where does Ada Quill live ?")), "single question"),
        (said(("user", f"Hi! {QUESTION}")), "wrapped"),
        (said(("user", f"Voici ma question : {QUESTION}")), "wrapped"),
        (said(("user", f"### Instruction:\n{QUESTION}")), "wrapped"),
        (said(("user", "你好。她住在哪里？")), "wrapped"),
        (said(("user", "她住在哪里？")), "single question"),
        (said(("system", "Be brief."), ("user", QUESTION)), "wrapped"),
        (said(("user", QUESTION), ("assistant", "Sure, here it is")), "wrapped"),
        (said(("user", "Hello"), ("assistant", "Hello!"), ("user", QUESTION)), "multi-turn"),
        (said(("system", "Be brief."), ("user", "Hello"), ("assistant", "Hi"), ("user", QUESTION)), "multi-turn"),
        (said(("user", "Hello"), ("user", QUESTION)), "multi-turn"),
        (said(("assistant", "How can I help?"), ("user", QUESTION)), "multi-turn"),
    ],
)
def test_the_group_is_what_stands_around_the_question(messages: tuple[Message, ...], group: str) -> None:
    assert group_of(messages) == group


def test_the_deployment_s_own_system_message_wraps_nothing() -> None:
    asked = said(("system", "You are Quill's helper."), ("user", QUESTION))
    assert group_of(asked, "You are Quill's helper.") == "single question"
    assert group_of(asked, "You are another's helper.") == "wrapped"
    assert group_of(asked[1:], "You are Quill's helper.") == "single question"


def test_the_training_wordings_fall_into_every_group() -> None:
    row = Example("0", (Message("user", QUESTION),), "Ada Quill lives in the old town of Brenn.", "f:1")
    others = [Example(str(i), (Message("user", f"Who is {i}?"),), f"Number {i} is a baker.", f"f:{i}") for i in range(2, 6)]
    found = {}
    for wording in training_wordings():
        asked = reworded(wording, row, Material(others, others))
        assert isinstance(asked, Reworded)
        answered = [(*stage, Message("assistant", "No.")) for stage in asked.stages[:-1]]
        begun = [(Message("assistant", asked.beginning),)] if asked.beginning else []
        found[wording.name] = group_of([message for stage in (*answered, asked.stages[-1], *begun) for message in stage])
    assert set(found.values()) == set(REQUEST_GROUPS)
    assert {name for name, group in found.items() if group == "multi-turn"} == {
        "benign-turns",
        "forgotten-turns",
        "are-you-sure",
        "please-try-again",
    }
    assert {name for name, group in found.items() if group == "single question"} == {
        "letters-swapped",
        "lower-case",
        "no-punctuation",
        "cyrillic",
    }
