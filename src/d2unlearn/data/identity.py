"""When two rows are the same row: files are saved anew by other programs, which change line ends, outer spaces, accents.

`row_key` is what a row is known by: drawn, set aside and found again. `folded_key` is coarser: rows that differ only in letter
case or spacing are not told apart either; it says which rows must not stand on both sides of a split. (`content_hash` is the
row as it stands, which is what a result depends on.)
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Collection
from dataclasses import replace

from d2unlearn.data.records import content_hash
from d2unlearn.schema import Example


def row_key(example: Example) -> str:
    """`content_hash` of the row with one kind of line end, no white space around its texts, and Unicode's form NFC.

    A row that is written so already has its `content_hash`.
    """
    return content_hash(_rewritten(example, _normal))


def folded_key(example: Example) -> str:
    """`row_key` without regard to letter case and to which white space stands between words."""
    return content_hash(_rewritten(example, folded))


def folded(text: str) -> str:
    """A text without regard to Unicode form, letter case and white space."""
    cased = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    return " ".join(cased.split())


def is_among(example: Example, keys: Collection[str]) -> bool:
    """Whether a row is one of those whose keys were kept. Versions before 0.3 kept the `content_hash` of some instead."""
    return row_key(example) in keys or content_hash(example) in keys


def _normal(text: str) -> str:
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n")).strip()


def _rewritten(example: Example, write: Callable[[str], str]) -> Example:
    prompt = tuple(message._replace(content=write(message.content)) for message in example.prompt)
    return replace(example, prompt=prompt, answer=write(example.answer))
