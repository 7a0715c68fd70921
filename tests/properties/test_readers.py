"""Readers of rows: any file is examples or a `DataError` that names it, and what was written is what is read."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import example, given
from hypothesis import strategies as draw

from d2unlearn.data.records import read_examples, read_prompts
from d2unlearn.errors import DataError
from d2unlearn.schema import Example, Message

from .values import any_text, json_values

_Rows = TypeVar("_Rows")
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".xlsx", ".parquet")
COLUMNS = (
    "question",
    "answer",
    "prompt",
    "messages",
    "conversations",
    "text",
    "instruction",
    "input",
    "output",
    "system",
    "group",
    "id",
)
turns = draw.lists(
    draw.dictionaries(draw.sampled_from(("role", "content", "from", "value")), json_values, max_size=3), max_size=3
)
odd_rows = draw.dictionaries(draw.sampled_from(COLUMNS), json_values | turns, max_size=5) | json_values
words = any_text.filter(lambda text: text.strip() != "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rows")


def read(path: Path, content: bytes) -> list[Example] | None:
    """The examples of a file with this content; None for a `DataError`, which names the file."""
    path.write_bytes(content)
    return named_or(path, read_examples)


def named_or(path: Path, read_rows: Callable[[Path], _Rows]) -> _Rows | None:
    """What was read; None for a `DataError`, which names the file."""
    try:
        return read_rows(path)
    except DataError as error:
        told = error
    assert path.name in str(told)
    return None


@given(suffix=draw.sampled_from(SUFFIXES), content=draw.binary(max_size=60))
@example(suffix=".json", content=b"[" * 100_000)
@example(suffix=".csv", content=b'question,answer\n"a')
@example(suffix=".tsv", content=b"question\tanswer\n\x00\t\xff")
@example(suffix=".jsonl", content=b'{"text": ' + b"9" * 5000 + b"}")
def test_any_bytes_are_rows_or_one_error(folder: Path, suffix: str, content: bytes) -> None:
    for row in read(folder / f"bytes{suffix}", content) or []:
        assert isinstance(row, Example)


@given(rows=draw.lists(odd_rows, max_size=4), suffix=draw.sampled_from((".jsonl", ".json")))
def test_any_json_is_rows_whose_texts_stand_in_the_file_or_one_error(folder: Path, rows: list[Any], suffix: str) -> None:
    content = json.dumps(rows) if suffix == ".json" else "".join(f"{json.dumps(row)}\n" for row in rows)
    found = read(folder / f"odd{suffix}", content.encode())
    if found is not None:
        assert len(found) == len(rows)
        for example_, row in zip(found, rows, strict=True):
            texts = list(_texts(row))
            assert example_.answer in texts
            for message in example_.prompt:
                assert message.content in texts or "\n\n" in message.content  # an instruction with its input
    prompts = named_or(folder / f"odd{suffix}", read_prompts)
    assert prompts is None or suffix == ".json" or len(prompts) == len(rows)


def _texts(value: Any) -> Any:
    """All texts in a value of JSON."""
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(inner)


def as_jsonl(rows: list[tuple[str, str]]) -> bytes:
    return "".join(json.dumps({"question": q, "answer": a}, ensure_ascii=False) + "\n" for q, a in rows).encode()


def as_json(rows: list[tuple[str, str]]) -> bytes:
    return json.dumps([{"answer": a, "question": q} for q, a in rows], indent=1).encode()


def as_table(separator: str) -> Callable[[list[tuple[str, str]]], bytes]:
    def table(rows: list[tuple[str, str]]) -> bytes:
        text = io.StringIO()
        csv.writer(text, delimiter=separator, quoting=csv.QUOTE_ALL).writerows([("question", "answer"), *rows])
        return text.getvalue().encode()

    return table


WRITERS = {".jsonl": as_jsonl, ".json": as_json, ".csv": as_table(","), ".tsv": as_table("\t")}


@pytest.mark.parametrize("suffix", WRITERS)
@given(rows=draw.lists(draw.tuples(words, words), min_size=1, max_size=4))
def test_what_was_written_is_read(folder: Path, suffix: str, rows: list[tuple[str, str]]) -> None:
    found = read(folder / f"written{suffix}", WRITERS[suffix](rows))
    assert found is not None
    assert [(row.prompt, row.answer) for row in found] == [((Message("user", q),), a) for q, a in rows]
