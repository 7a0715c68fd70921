"""The words of a refusal as tokens."""

from __future__ import annotations

from collections.abc import Sequence

from d2unlearn.data.template import Template
from d2unlearn.gate.rule import Words


def words_of(template: Template, refusal_texts: Sequence[str], ends: Sequence[int], pad: int) -> Words:
    """Each refusal text as plain text: a special token's spelling in it stays text."""
    refusals = tuple(tuple(template.text_ids(text)) for text in refusal_texts)
    return Words(refusals, tuple(template.text_ids("\n")), tuple(ends), pad)
