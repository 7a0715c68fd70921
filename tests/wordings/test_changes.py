"""Every change of letters, by hand."""

from __future__ import annotations

from random import Random

import pytest

from d2unlearn.wordings.changes import CHANGES

TEXT = "Who's Al-Kuwaiti, born 08/09/1956? \"Yes\" or 'no'."


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lower_case", "who's al-kuwaiti, born 08/09/1956? \"yes\" or 'no'."),
        ("upper_case", "WHO'S AL-KUWAITI, BORN 08/09/1956? \"YES\" OR 'NO'."),
        ("alternating_case", "wHo's aL-KuWaItI, bOrN 08/09/1956? \"yEs\" Or 'No'."),
        ("every_word_capital", "Who's Al-Kuwaiti, Born 08/09/1956? \"Yes\" Or 'no'."),
        ("no_punctuation", "Who's Al-Kuwaiti born 08/09/1956 Yes or no"),
        ("marks_three_times", "Who's Al-Kuwaiti, born 08/09/1956??? \"Yes\" or 'no'..."),
        ("marks_apart", "Who's Al-Kuwaiti , born 08/09/1956 ? \"Yes\" or 'no'."),
        ("dots_at_the_end", "Who's Al-Kuwaiti, born 08/09/1956? \"Yes\" or 'no'..."),
    ],
)
def test_changes_that_draw_nothing(name: str, expected: str) -> None:
    rng = Random(0)
    before = rng.getstate()
    assert CHANGES[name](TEXT, rng) == expected
    assert rng.getstate() == before


@pytest.mark.parametrize(
    ("name", "possible"),
    [
        ("letters_swapped", {"mian", "mani"}),
        ("letters_dropped", {"min", "man"}),
        ("letters_doubled", {"maain", "maiin"}),
        ("keys_beside", {"msin", "maon"}),
    ],
)
def test_a_mistake_is_made_inside_a_long_word(name: str, possible: set[str]) -> None:
    made = {CHANGES[name]("the main 1234", Random(seed)) for seed in range(20)}
    assert made == {f"the {word} 1234" for word in possible}
    assert CHANGES[name]("to be or not", Random(0)) == "to be or not"


def test_a_third_of_the_long_words_is_mistyped() -> None:
    words = [f"abcdefgh{letter}" for letter in "abcdefghi"]
    made = CHANGES["letters_dropped"](" ".join(words), Random(3)).split()
    assert sum(len(word) == 8 for word in made) == 3
    assert sum(one == other for one, other in zip(words, made, strict=True)) == 6


@pytest.mark.parametrize(
    ("name", "text", "all_changed"),
    [
        ("cyrillic", "aceopxy ABCEHKMOPTX", "асеорху АВСЕНКМОРТХ"),
        ("greek", "ovu ABEHIKMNOPTXYZ", "ονυ ΑΒΕΗΙΚΜΝΟΡΤΧΥΖ"),
        ("accents", "aeiouncy AEIOU", "áèîöüñçý ÁÈÎÖÜ"),
        ("full_width", "aZ09", "ａＺ０９"),
    ],
)
def test_letters_become_their_likenesses_at_the_same_place(name: str, text: str, all_changed: str) -> None:
    seen = set()
    for seed in range(60):
        made = CHANGES[name](text, Random(seed))
        differing = [index for index in range(len(text)) if made[index] != text[index]]
        assert len(made) == len(text)
        assert len(differing) == max(1, round(len(text.replace(" ", "")) / 5))
        assert all(made[index] == all_changed[index] for index in differing)
        seen.update(differing)
    assert seen == {index for index, letter in enumerate(text) if letter != " "}
    assert CHANGES[name]("- ?", Random(0)) == "- ?"
