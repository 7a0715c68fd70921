"""Words, the answer's own words, and the gap in a sentence: cases worked by hand."""

from __future__ import annotations

import pytest

from d2unlearn.wordings.words import BLANK, Gap, new_words, with_gap, words_in


def test_words_are_runs_of_letters_and_digits() -> None:
    assert words_in("Al-Kuwaiti's 2nd book: “Été”") == ["al", "kuwaiti", "s", "2nd", "book", "t"]
    assert words_in("谢谢！") == []


def test_new_words_are_those_that_carry_something_and_were_not_given() -> None:
    assert new_words("She was born in Oslo, Norway, in Oslo.", "Where was Ann born?") == ["oslo", "norway"]
    assert new_words("Ann was born.", "Where was Ann born?") == []


@pytest.mark.parametrize(
    ("answer", "question", "expected"),
    [
        pytest.param(
            "Ann is a baker.", "What is Ann?", Gap(f"Ann is a {BLANK}.", "baker"), id="the function word before stays"
        ),
        pytest.param(
            "Ann wrote 'Red Sea' and Joe 'Sky'.",
            "What did Ann and Joe write?",
            Gap(f"Ann {BLANK}' and Joe 'Sky'.", "wrote 'Red Sea"),
            id="the longest run",
        ),
        pytest.param("Red Ann, blue Joe.", "Ann, Joe?", Gap(f"Red Ann, {BLANK} Joe.", "blue"), id="the last of equal ones"),
        pytest.param(
            "one two three four five six seven eight",
            "Count?",
            Gap(f"one two {BLANK}", "three four five six seven eight"),
            id="six words at most",
        ),
        pytest.param("Ann is Ann.", "Who is Ann?", None, id="no word of its own"),
        pytest.param("Kuwait City, Kuwait.", "Which city?", None, id="the rest holds it"),
        pytest.param("", "Which city?", None, id="empty"),
    ],
)
def test_the_gap_hides_what_the_question_does_not_hold(answer: str, question: str, expected: Gap | None) -> None:
    assert with_gap(answer, question) == expected
