"""What a text says, sentence by sentence, and in plain letters."""

from __future__ import annotations

from random import Random

import pytest

from d2unlearn.gate.sentences import plain_letters, sentences_of
from d2unlearn.wordings.changes import CHANGES

QUESTION = "Where was Ada Byron born?"


@pytest.mark.parametrize(
    "text",
    [
        f"Hi! {QUESTION} Thanks.",
        f"Question: {QUESTION}",
        f"# Task\n4) {QUESTION}",
        f"> - {QUESTION}\nAnswer:",
        f"Q: {QUESTION}\nA:",
        f"{QUESTION}\n\n{QUESTION}",
        f'Dr. J. R. said "So!" {QUESTION}',
    ],
)
def test_a_question_is_found_in_what_stands_around_it(text: str) -> None:
    assert QUESTION in sentences_of(text)


def test_what_is_a_sentence() -> None:
    assert sentences_of(QUESTION) == []
    assert sentences_of(f"  {QUESTION}\n") == []
    assert sentences_of("") == []
    assert sentences_of("Are you? Who was J. R. Smith, Dr. Who? Thank you.") == ["Who was J. R. Smith, Dr. Who?"]
    assert sentences_of("At 10:30 she left. One two three: four five.") == [
        "At 10:30 she left.",
        "One two three: four five.",
    ]
    assert sentences_of("你好。谁写了这本书？") == ["谁写了这本书？"]
    assert sentences_of("1999 was a year. A second year came.") == ["1999 was a year.", "A second year came."]


@pytest.mark.parametrize("change", ["cyrillic", "full_width", "greek", "accents"])
def test_letters_that_look_alike_become_those_that_they_are_taken_for(change: str) -> None:
    for seed in range(5):
        changed = CHANGES[change](QUESTION, Random(seed))
        assert changed != QUESTION
        assert plain_letters(changed) == QUESTION


def test_words_of_another_script_stay() -> None:
    for text in (QUESTION, "Где родился Ахматов?", "Πού γεννήθηκε;", "हिन्दी में", "Й й ё", "谁写了这本书"):
        assert plain_letters(text) == text
    assert plain_letters("café Ωmega оr ор") == "cafe Ωmega or ор"
