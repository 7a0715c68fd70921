"""Changes of a text's letters that keep what it says: typing mistakes, capitals, punctuation, letters that look alike.

Each takes the text and a generator (those that draw nothing leave it alone) and returns the changed text.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping
from random import Random

Change = Callable[[str, Random], str]

SHARE_OF_WORDS = 1 / 3
"""Of the words of at least four letters, how many get one typing mistake; at least one does."""
SHARE_OF_LETTERS = 1 / 5
"""Of the letters that have a likeness, how many are replaced; at least one is."""
_LONG_WORD = re.compile(r"[^\W\d_]{4,}")
_MARKS = ".,;:!?"
_KEY_BESIDE = dict(zip("qwertyuiopasdfghjklzxcvbnm", "wertyuioposdfghjklkxcvbnmn", strict=True))
"""The key to the right on an English keyboard (left at the end of a row)."""
_CYRILLIC = str.maketrans("aceopxyABCEHKMOPTX", "асеорхуАВСЕНКМОРТХ")
_GREEK = str.maketrans("ovuABEHIKMNOPTXYZ", "ονυΑΒΕΗΙΚΜΝΟΡΤΧΥΖ")
_ACCENTED = str.maketrans("aeiouncyAEIOU", "áèîöüñçýÁÈÎÖÜ")
_WIDE = {code: code + 0xFEE0 for code in map(ord, string.ascii_letters + string.digits)}


def _mistyped(mistake: Callable[[str, int], str]) -> Change:
    """One mistake inside each of a third of the long words. mistake: (word, an inner place) to the word as typed."""

    def change(text: str, rng: Random) -> str:
        found = list(_LONG_WORD.finditer(text))
        if not found:
            return text
        count = max(1, round(len(found) * SHARE_OF_WORDS))
        for match in sorted(rng.sample(found, count), key=lambda match: -match.start()):
            word = match.group()
            text = text[: match.start()] + mistake(word, rng.randrange(1, len(word) - 1)) + text[match.end() :]
        return text

    return change


def _swapped(word: str, place: int) -> str:
    return word[:place] + word[place + 1] + word[place] + word[place + 2 :]


def _dropped(word: str, place: int) -> str:
    return word[:place] + word[place + 1 :]


def _doubled(word: str, place: int) -> str:
    return word[: place + 1] + word[place:]


def _key_beside(word: str, place: int) -> str:
    return word[:place] + _KEY_BESIDE.get(word[place].lower(), word[place]) + word[place + 1 :]


def _look_alike(table: Mapping[int, int]) -> Change:
    """Some letters by others that look like them. table: from and to, as code points."""

    def change(text: str, rng: Random) -> str:
        places = [index for index, letter in enumerate(text) if ord(letter) in table]
        count = min(len(places), max(1, round(len(places) * SHARE_OF_LETTERS)))
        chosen = set(rng.sample(places, count))
        return "".join(chr(table[ord(letter)]) if index in chosen else letter for index, letter in enumerate(text))

    return change


def _alternating(text: str, _: Random) -> str:
    return "".join(letter.upper() if index % 2 else letter.lower() for index, letter in enumerate(text))


def _every_word_capital(text: str, _: Random) -> str:
    return " ".join(word[:1].upper() + word[1:] for word in text.split(" "))


def _bare(text: str, _: Random) -> str:
    """Without punctuation but hyphens and slashes, which hold words and dates together, and apostrophes inside words."""
    return re.sub(r"(?<!\w)'|'(?!\w)|[.,;:!?\"()“”]", "", text)


def _marks_three_times(text: str, _: Random) -> str:
    return re.sub(r"([!?.])(?=\s|$)", r"\1\1\1", text)


def _marks_apart(text: str, _: Random) -> str:
    return re.sub(rf"(?<=\w)([{_MARKS}])(?=\s|$)", r" \1", text)


def _dots_at_the_end(text: str, _: Random) -> str:
    return text.rstrip(_MARKS + " ") + "..."


CHANGES: Mapping[str, Change] = {
    "letters_swapped": _mistyped(_swapped),
    "letters_dropped": _mistyped(_dropped),
    "letters_doubled": _mistyped(_doubled),
    "keys_beside": _mistyped(_key_beside),
    "lower_case": lambda text, _: text.lower(),
    "upper_case": lambda text, _: text.upper(),
    "alternating_case": _alternating,
    "every_word_capital": _every_word_capital,
    "no_punctuation": _bare,
    "marks_three_times": _marks_three_times,
    "marks_apart": _marks_apart,
    "dots_at_the_end": _dots_at_the_end,
    "cyrillic": _look_alike(_CYRILLIC),
    "full_width": _look_alike(_WIDE),
    "greek": _look_alike(_GREEK),
    "accents": _look_alike(_ACCENTED),
}
"""By the names that a wording's `changes` are given in."""
