"""The rows that a trainer is given, in whatever form, as the token ids that it trains on and looks at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

from transformers import PreTrainedTokenizerBase

from d2unlearn.data.batching import truncate
from d2unlearn.data.records import example_of
from d2unlearn.data.template import Template
from d2unlearn.errors import ConfigError, DataError
from d2unlearn.schema import Example, Kind, Role, Tokens

Rows = Iterable[Example | Tokens | Mapping[str, Any]]
KINDS: tuple[Kind, ...] = get_args(Kind)
Watched = Literal["forget", "retain", "near", "reworded"]
"""Rows looked at while training: those to forget, retained ones best never trained on, neighbours of what is forgotten, and the
rows to forget in other words."""
WATCHED: tuple[Watched, ...] = get_args(Watched)


def render(rows: Rows, tokenizer: PreTrainedTokenizerBase | None, max_length: int) -> list[Tokens]:
    """Rows as token ids, cut at `max_length`. Raises `DataError` when an answer is cut away whole."""
    template: Template | None = None
    rendered: list[Tokens] = []
    for number, row in enumerate(rows, start=1):
        if isinstance(row, Mapping):
            row = example_of(row, f"row {number}")
        if isinstance(row, Example):
            if tokenizer is None:
                raise ConfigError(["rows of text need processing_class=tokenizer"])
            template = template or Template(tokenizer)
            row = template.tokens(row)
        cut = truncate(row, max_length)
        if row.answer_length and not cut.answer_length:
            raise DataError(f"{row.example_id}: the prompt alone is longer than max_length = {max_length} tokens")
        rendered.append(cut)
    return rendered


def training_rows(
    forget: Rows, retain: Rows, tokenizer: PreTrainedTokenizerBase | None, max_length: int
) -> dict[Role, list[Tokens]]:
    """Both sides' rows. Raises `DataError` when one has no answer tokens at all."""
    rows: dict[Role, list[Tokens]] = {
        "forget": render(forget, tokenizer, max_length),
        "retain": render(retain, tokenizer, max_length),
    }
    for role, tokens in rows.items():
        if not any(row.answer_length for row in tokens):
            raise DataError(f"the {role} set holds no answer tokens to train on")
    return rows


def monitor_rows(
    given: Mapping[Watched, Rows] | None,
    training: Mapping[Role, list[Tokens]],
    tokenizer: PreTrainedTokenizerBase | None,
    max_length: int,
    count: int,
) -> dict[Watched, list[Tokens]]:
    """At most `count` rows of each kind to look at while training: those given, else those trained on; `near` if given."""
    if given is not None and not (isinstance(given, Mapping) and set(given) <= set(WATCHED)):
        raise ConfigError(['eval_dataset should be {"forget": rows, "retain": rows}, and may have "near" and "reworded"'])
    rows: dict[Watched, list[Tokens]] = {kind: training[kind] for kind in KINDS}
    rows |= {kind: render(given_rows, tokenizer, max_length) for kind, given_rows in (given or {}).items()}
    return {kind: _evenly(tokens, count) for kind, tokens in rows.items()}


def _evenly(rows: Sequence[Tokens], count: int) -> list[Tokens]:
    """At most `count` rows, spread evenly over the list, so that every author or document is among them."""
    if len(rows) <= count:
        return list(rows)
    return [rows[index * len(rows) // count] for index in range(count)]
