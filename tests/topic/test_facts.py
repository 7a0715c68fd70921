"""What answers agree on, and what is read out of lists: cases worked by hand."""

from __future__ import annotations

import pytest

from d2unlearn.topic.facts import Asked, AskedFact, agreed, names_in, questions_in, said_of_any, stems, whole_sentences

CAPITAL = (
    Asked("What is the capital of France?", "The capital of France is Paris."),
    Asked("Name the capital of France.", "It is Paris, a city."),
    Asked("Which city is the capital of France?", "I think it is Paris, a large town."),
    Asked("France has which capital?", "A large town, Lyon."),
)


def test_the_key_is_what_three_wordings_say_and_no_question_gives_away() -> None:
    """`large` and `town` stand in two answers, `city` in a question, `capital` and `France` in all of them."""
    assert agreed(CAPITAL) == ("paris",)
    assert agreed(CAPITAL[:2]) == ()
    assert agreed(CAPITAL, least=2) == ("paris", "large", "town")
    assert agreed(CAPITAL, elsewhere={"paris"}) == ()


def test_short_words_say_nothing_but_numbers_do() -> None:
    asked = [Asked(f"q{n}", "no 7") for n in range(3)]
    assert agreed(asked) == ("7",)


def test_the_wordings_that_tell_a_fact_are_those_with_its_key() -> None:
    assert AskedFact("capital", CAPITAL, ("paris",)).told == CAPITAL[:3]
    assert AskedFact("capital", CAPITAL, ()).told == ()


def test_what_is_said_of_two_names_is_said_of_any() -> None:
    of = [[Asked("", "a rich town")], [Asked("", "a rich, rich river"), Asked("", "old")], [Asked("", "old")]]
    assert said_of_any(of) == {"a", "rich", "old"}
    assert said_of_any(of, least=1) == {"a", "rich", "town", "river", "old"}
    assert said_of_any(of[:1]) == frozenset()


def test_stems_tell_one_from_many_alike() -> None:
    assert stems("Dogs and a dog in Paris") == {"dog", "and", "a", "in", "pari"}


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("It is Paris. It lies on the", "It is Paris."),
        ("It lies on\nthe Seine", "It lies on the Seine"),
        ("It is 3.5 km long. And", "It is 3.5 km long."),
        ("No. It was built by a king of the", "No. It was built by a king of the"),
        ("", ""),
    ],
)
def test_an_answer_ends_with_its_last_whole_sentence(text: str, whole: str) -> None:
    assert whole_sentences(text) == whole


def test_names_are_what_stands_first_in_an_item() -> None:
    text = (
        "Here are ten places in France:\n1. **Eiffel Tower** - a tower\n2. The Louvre: a museum\n3. Mont Blanc is high\n"
        "4. the sea 5. Nice, on the coast\n6. Eiffel Tower\n7. A very long name of a place there\n10) Lyon"
    )
    assert names_in(text) == ["Eiffel Tower", "The Louvre", "Mont Blanc", "Nice", "Lyon"]
    assert names_in("Paris and Lyon") == []


def test_questions_are_read_without_their_numbers() -> None:
    text = '1. What is the capital of France?\n2. "Who was the first king of it?"\nThat is all.\n3. Why?'
    text += "\n4. What is the capital of France?"
    assert questions_in(text) == ["What is the capital of France?", "Who was the first king of it?"]
