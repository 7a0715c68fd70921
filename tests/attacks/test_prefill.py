"""The answer's first tokens as a beginning, on a made model that goes on only when it was given enough."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

import tiny_models
from d2unlearn.attacks.prefill import TOO_SHORT, Prefill, prefilled
from d2unlearn.attacks.requests import AttackReply, AttackRequest
from d2unlearn.data.template import Template
from d2unlearn.errors import ConfigError
from d2unlearn.schema import Example, Message

TEMPLATE = Template(tiny_models.tokenizer())
LONG = Example("long", (Message("user", "What is it"),), "it was born in the capital of France", "rows:1", "g")
SHORT = Example("short", (Message("user", "What is he"),), "he was born", "rows:2")


def test_the_first_tokens_are_given_and_the_rest_is_judged() -> None:
    asked: list[AttackRequest] = []

    def goes_on_after_two(requests: Sequence[AttackRequest], max_new_tokens: int) -> list[AttackReply]:
        asked.extend(requests)
        return [AttackReply("born in the capital of France" if len(each.beginning) >= 2 else "Paris") for each in requests]

    made = prefilled(goes_on_after_two, TEMPLATE, "forget", [LONG, SHORT], Prefill((1, 2)), ("told", "refused"))
    first, second = asked[:2]
    assert TEMPLATE.tokenizer.decode(list(first.beginning)) == "it"
    assert first.messages == LONG.prompt
    assert len(asked) == 2  # two and one words are left of the short answer
    assert TEMPLATE.tokenizer.decode(list(second.beginning)) == "it was"
    settings = [(reading.setting["first tokens"], reading.measure) for reading in made]
    assert settings == [(1, "told"), (1, "refused"), (2, "told"), (2, "refused")]
    assert [reading.values[0] for reading in made] == [0.0, 0.0, 1.0, 0.0]
    assert all(math.isnan(reading.values[1]) and reading.not_asked == {TOO_SHORT: 1} for reading in made)
    assert made[0].groups == ("g", "short")


@pytest.mark.parametrize("lengths", [(), (0, 1)])
def test_lengths_that_cannot_be_are_said(lengths: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="lengths should be counts of at least 1"):
        Prefill(lengths)
