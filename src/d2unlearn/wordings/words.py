"""Words of a text, and what of an answer a request does not give away. Pure; only Latin letters and digits make words."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

_WORD = re.compile("[a-z0-9]+")
_EDGES = re.compile(r"^\W+|\W+$")
BLANK = "____"
"""Stands for the words that are left out of a sentence."""
LONGEST_GAP = 6
"""Words that one gap hides at most."""
_OFTEN = (
    "a an and are as at be been but by can could did do does for from had has have he her him his how i in is it its me my of "
    "on or s she so some such than that the their them then there these they this to was were what when where which who whom "
    "whose why will with would you your"
)
FUNCTION_WORDS = frozenset(_OFTEN.split())
"""Words that carry no fact: an answer is not told because they occur in it."""


class Gap(NamedTuple):
    """A sentence with a gap: `shown` holds `BLANK` where the words `hidden` stood."""

    shown: str
    hidden: str


def words_in(text: str) -> list[str]:
    """Lower-case runs of a-z and 0-9, as `rouge-score` counts words: 'Al-Kuwaiti' is two."""
    return _WORD.findall(text.lower())


def new_words(text: str, given: str) -> list[str]:
    """The words of `text`, in order and each once, that do not stand in `given` and are no function words."""
    known = FUNCTION_WORDS.union(words_in(given))
    return [word for word in dict.fromkeys(words_in(text)) if word not in known]


def with_gap(answer: str, question: str) -> Gap | None:
    """The answer without its longest run of words that the question does not hold; the last of several, its last words if long.

    Function words at a run's ends stay, and so does punctuation. None when the question holds every word, or when the rest of
    the answer holds every word of the gap.
    """
    pieces = answer.split()
    known = set(words_in(question))
    run = max(_runs(pieces, known), key=lambda span: (span[1] - span[0], span[1]), default=None)
    if run is None:
        return None
    start, end = max(run[0], run[1] - LONGEST_GAP), run[1]
    while not _is_new(pieces[start], FUNCTION_WORDS):
        start += 1
    text = " ".join(pieces[start:end])
    hidden = _EDGES.sub("", text)
    before, _, after = text.partition(hidden)
    shown = " ".join([*pieces[:start], before + BLANK + after, *pieces[end:]])
    return Gap(shown, hidden) if new_words(hidden, shown) else None


def _runs(pieces: list[str], known: Collection[str]) -> list[tuple[int, int]]:
    """(start, end) of each run of pieces whose words are not known, without function words at its ends."""
    runs: list[tuple[int, int]] = []
    start = 0
    while start < len(pieces):
        end = start
        while end < len(pieces) and _is_new(pieces[end], known):
            end += 1
        carrying = [index for index in range(start, end) if _is_new(pieces[index], FUNCTION_WORDS)]
        if carrying:
            runs.append((carrying[0], carrying[-1] + 1))
        start = end + 1
    return runs


def _is_new(piece: str, known: Collection[str]) -> bool:
    """Whether a piece between spaces has words, none of them known."""
    words = words_in(piece)
    return bool(words) and not any(word in known for word in words)
