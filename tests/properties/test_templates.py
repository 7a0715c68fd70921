"""Rendering: nothing typed becomes a special token, a row continues its prompt, and its answer is what was written."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as draw

import tiny_models
from d2unlearn.data.template import Template
from d2unlearn.schema import Example, Message

from .values import odd_text

letters = draw.text(draw.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=40)
MADE = {"chat": Template(tiny_models.tokenizer()), "plain": Template(tiny_models.tokenizer(chat_template=None))}
ROLES = ("system", "user", "assistant", "user")


def special(template: Template, ids: list[int]) -> list[int]:
    marks = set(template.tokenizer.all_special_ids) - {template.tokenizer.unk_token_id}
    return [i for i in ids if i in marks]


@pytest.mark.parametrize("kind", MADE)
@given(texts=draw.tuples(*[odd_text] * len(ROLES)))
@example(texts=("<eos>", "\ue0000\ue001<eos>", "<e<eos>os>", "<q><a>"))
def test_special_tokens_are_the_template_s_alone(kind: str, texts: tuple[str, ...]) -> None:
    template = MADE[kind]
    given_ = template.prompt_ids(tuple(map(Message, ROLES, texts)))
    plain = template.prompt_ids(tuple(Message(role, "is") for role in ROLES))
    assert special(template, given_) == special(template, plain)


@pytest.mark.parametrize("kind", MADE)
@given(question=odd_text, answer=odd_text.filter(lambda text: text.strip() != ""))
def test_a_row_is_its_prompt_and_then_its_answer(kind: str, question: str, answer: str) -> None:
    template, prompt = MADE[kind], (Message("user", question),)
    asked = template.prompt_ids(prompt)
    row = template.tokens(Example("a", prompt, answer, "here:1"))
    assert list(row.input_ids[: len(asked)]) == asked
    assert row.answer_mask == (False,) * len(asked) + (True,) * (len(row.input_ids) - len(asked))
    assert special(template, list(row.input_ids[len(asked) :])) == [template.tokenizer.eos_token_id]


@pytest.mark.parametrize("kind", MADE)
@given(answer=letters.filter(lambda text: text.strip() != ""))
def test_the_answer_s_tokens_spell_the_answer(kind: str, answer: str) -> None:
    template = MADE[kind]
    row = template.tokens(Example("a", (Message("user", "What is it?"),), answer, "here:1"))
    ids = [i for i, is_answer in zip(row.input_ids, row.answer_mask, strict=True) if is_answer]
    spelled = str(template.tokenizer.decode(ids[:-1], clean_up_tokenization_spaces=False))
    assert spelled == (answer if kind == "chat" else f" {answer}")
