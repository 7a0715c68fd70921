"""What a turn says, sentence by sentence, and in plain letters. Pure.

A forgotten question that stands among other sentences, behind a label or in letters that look like its own may pass as a part
of the whole. By itself, in the letters that it imitates, it is the kind of request that a gate was calibrated for.
"""

from __future__ import annotations

import re
import unicodedata

LEAST_WORDS = 3
"""Words that a sentence must have to be looked at: `Thank you.` asks nothing."""

_ENDS = re.compile(
    r"(?<=[.!?…。！？؟।])(?<!\b\w\.)(?<!\b(?:Mr|Ms|Dr|St|Jr|Sr|vs)\.)(?<!\b(?:Mrs|etc)\.)[\"'”’)\]]*\s+|(?<=[。！？])(?=\S)|[\n\r]+"
)
"""Where a sentence ends: behind its mark, unless that ends an initial or a title, and at a line break."""
_MARKER = re.compile(r"^(?:[-*•>#|\s]+|\(?\w{1,2}[).]\s+)+")
"""Of a list, a heading or a quotation, before what is said."""
_LABEL = re.compile(r".*(?::\s|：)\s*", re.DOTALL)
"""Up to the last colon: `Question:`, `Tell me this, please:`."""
_WORD = re.compile(r"[぀-ヿ㐀-鿿]|[^\W_]+")
"""A word; in Chinese and Japanese each sign."""

_LATIN = re.compile(r"[A-Za-z]")
_LETTERS = re.compile(r"[^\W\d_]+")
_LOOKS_LIKE = str.maketrans(
    "аеорсухіјѕһԁԛԝѵАВЕКМНОРСТУХІЈЅԌԚԜαγηικνορτυχωΑΒΕΖΗΙΚΜΝΟΡΤΥΧ",
    "aeopcyxijshdqwvABEKMHOPCTYXIJSGQWaynikvoptuxwABEZHIKMNOPTYX",
)
"""Cyrillic and Greek letters, and the Latin ones that they are taken for. Source: after Unicode Technical Standard 39."""
_MARKED = re.compile(r"(?<=[A-Za-z])[\u0300-\u036f]+")


def sentences_of(text: str) -> list[str]:
    """The sentences and lines of a text that have at least `LEAST_WORDS` words, each once, without list markers and without
    what stands before a colon. Empty for a text that is one such sentence and nothing else.
    """
    found = dict.fromkeys(_bare(piece) for piece in _ENDS.split(text))
    return [piece for piece in found if piece != text.strip() and len(_WORD.findall(piece)) >= LEAST_WORDS]


def plain_letters(text: str) -> str:
    """The text with letters that look like Latin ones written as these: in their compatibility form (full-width, mathematical),
    Cyrillic and Greek ones within words that have Latin letters, too, and Latin ones without accents.

    A word all of whose letters are of another script stays as it is.
    """
    compatible = _LETTERS.sub(_latin_where_mixed, unicodedata.normalize("NFKC", text))
    return unicodedata.normalize("NFC", _MARKED.sub("", unicodedata.normalize("NFD", compatible)))


def _bare(piece: str) -> str:
    said = _MARKER.sub("", piece.strip())
    behind = _LABEL.sub("", said)
    return (behind if len(_WORD.findall(behind)) >= LEAST_WORDS else said).strip()


def _latin_where_mixed(word: re.Match[str]) -> str:
    return word.group().translate(_LOOKS_LIKE) if _LATIN.search(word.group()) else word.group()
