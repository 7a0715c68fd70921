"""What answers to several wordings of one question agree on, and how names and questions are read out of its text. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from d2unlearn.wordings.words import new_words, words_in

LEAST_WORDINGS = 3
"""Wordings of a question that must be answered alike before the model is said to know."""
_SHORTEST = 3
_LONGEST_NAME = 5
_ITEM = re.compile(r"(?:^|\s)\d{1,2}[.)]\s+")
_NAME_ENDS = re.compile(r"\s+[-–—]\s+|[:(\[,;\n.]|\s+(?:is|was|are|were|which|that|who)\s")
_SENTENCE_END = re.compile(r"[.!?][\"')]*(?=\s|$)")


class Asked(NamedTuple):
    """A question and what the model answered."""

    question: str
    answer: str


@dataclass(frozen=True)
class AskedFact:
    """One thing that was asked in several wordings. key: the words that the answers agree on, empty where it is not known."""

    name: str
    asked: tuple[Asked, ...]
    key: tuple[str, ...]

    @property
    def told(self) -> tuple[Asked, ...]:
        """The wordings whose answers tell it: those with a word of the key."""
        return tuple(one for one in self.asked if not set(self.key).isdisjoint(words_in(one.answer)))


def agreed(asked: Sequence[Asked], *, elsewhere: Collection[str] = (), least: int = LEAST_WORDINGS) -> tuple[str, ...]:
    """The words that the answers to at least `least` wordings hold and that no question gives away, in order of the first.

    elsewhere: words that are no knowledge of this, since the model says them of anything. Function words and words of fewer
    than three letters say nothing.
    """
    given = " ".join(one.question for one in asked)
    counts = Counter(word for one in asked for word in new_words(one.answer, given))
    return tuple(
        word
        for word, n in counts.items()
        if n >= least and word not in elsewhere and (len(word) >= _SHORTEST or word.isdigit())
    )


def said_of_any(answers_by_name: Iterable[Sequence[Asked]], *, least: int = 2) -> frozenset[str]:
    """Words in the answers about at least `least` of several names, e.g. names that were made up."""
    counts = Counter(word for asked in answers_by_name for word in {w for one in asked for w in words_in(one.answer)})
    return frozenset(word for word, n in counts.items() if n >= least)


def stems(text: str) -> frozenset[str]:
    """The words of a text without a plural's s, to tell whether two texts speak of the same."""
    return frozenset(word.removesuffix("s") for word in words_in(text))


def whole_sentences(text: str) -> str:
    """The text up to its last whole sentence; all of it, without line breaks, where not even one is whole."""
    line = " ".join(text.split())
    ends = [match.end() for match in _SENTENCE_END.finditer(line) if match.end() > len(line) // 4]
    return line[: ends[-1]] if ends else line


def names_in(text: str) -> list[str]:
    """The names in a numbered list, each once and in order: what stands before the explanation, at most five words."""
    names = []
    for item in _ITEM.split(text)[1:]:
        name = _NAME_ENDS.split(item.replace("*", "").replace('"', "").strip(), maxsplit=1)[0].strip()
        if name and name[0].isupper() and len(name) >= _SHORTEST and len(name.split()) <= _LONGEST_NAME:
            names.append(name)
    return list(dict.fromkeys(names))


def questions_in(text: str) -> list[str]:
    """The questions in a text, each once and in order, without their numbers."""
    pieces = [_ITEM.sub(" ", piece).replace("*", "").replace('"', "").strip(" -\n") for piece in re.split(r"(?<=\?)|\n", text)]
    return list(dict.fromkeys(piece for piece in pieces if piece.endswith("?") and len(piece.split()) > LEAST_WORDINGS))
