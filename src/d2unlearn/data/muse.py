"""MUSE (Shi et al. 2024): news articles and novels to forget, with questions on them, passages, and held-out text.

From the hub (`muse-bench/MUSE-News`, `-Books`) or from a folder with the same parts: `knowmem/forget_qa.jsonl` (or `.json`,
`.parquet`) is the split `forget_qa` of `knowmem`. Columns: `knowmem` has question and answer; `verbmem` prompt and gt, a
passage and what follows it; the others text. The forget sets of `scal` contain one another, those of `sust` follow one another:
what a model unlearnt of each is measured on the split itself.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from d2unlearn.data.records import read_columns, read_examples, split_file
from d2unlearn.errors import DataError
from d2unlearn.schema import Example, Message

HUBS = {"news": "hf:muse-bench/MUSE-News", "books": "hf:muse-bench/MUSE-Books"}
PREFIX = "prefix"
"""The entry of `extra` that holds the passage before a continuation."""


def read_muse(part: str, split: str, *, corpus: str = "news", folder: str | Path | None = None) -> list[Example]:
    """One split of one part, e.g. `forget_qa` of `knowmem`. Without a folder it is loaded from the hub.

    A continuation (`verbmem`) is an example without a prompt, with the passage before it in `extra[PREFIX]`. Raises `DataError`
    for a corpus that is none, and where the split is not there.
    """
    if corpus not in HUBS:
        raise DataError(f"MUSE has no corpus {corpus}; choose {' or '.join(HUBS)}")
    source = f"{HUBS[corpus]}:{part}:{split}" if folder is None else split_file(Path(folder) / part, split)
    if part != "verbmem":
        return read_examples(source)
    return [
        Example(where, (), row["gt"], where, extra={PREFIX: row["prompt"]})
        for where, row in read_columns(source, ("prompt", "gt"))
    ]


def with_shots(examples: list[Example], shots: list[Example]) -> list[Example]:
    """The examples with others, answered, before their questions."""
    turns = tuple(turn for shot in shots for turn in (*shot.prompt, Message("assistant", shot.answer)))
    return [replace(example, prompt=(*turns, *example.prompt)) for example in examples]
