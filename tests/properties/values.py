"""What is drawn in more than one place: values of JSON, and texts with special tokens' spellings in them."""

from __future__ import annotations

from hypothesis import strategies as draw

PIECES = (
    "<eos>",
    "<q>",
    "<a>",
    "<bos>",
    "<pad>",
    "<",
    ">",
    "eos",
    "e",
    "\ue000",
    "\ue001",
    "0",
    "1",
    " ",
    "\n",
    "é",
    "{{",
    "}}",
    "{%",
)

any_text = draw.text(draw.characters(codec="utf-8"), max_size=30)
odd_text = draw.lists(draw.sampled_from(PIECES), max_size=12).map("".join) | any_text
numbers = draw.integers() | draw.floats() | draw.booleans() | draw.none()
json_values = draw.recursive(
    numbers | odd_text,
    lambda inner: draw.lists(inner, max_size=4) | draw.dictionaries(any_text, inner, max_size=4),
    max_leaves=8,
)
