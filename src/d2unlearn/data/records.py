"""Reading data sets in the ecosystem's formats into `Example` records. Every bad row is named by file and line.

Formats: `formats.py`. Files: JSONL, JSON (a list of rows, or JSON lines under that name), CSV (comma, semicolon or tab), TSV, a
spreadsheet (.xlsx), Parquet, a folder written by `datasets.save_to_disk`, or a name on the Hugging Face hub (`hf:OWNER/NAME`,
`hf:OWNER/NAME:CONFIG`, `hf:OWNER/NAME:CONFIG:SPLIT`). A row's line is where it begins; rows without lines are counted from 1.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from d2unlearn.data.formats import HeadingError, heading, named, text_of
from d2unlearn.data.formats import example_of as example_of
from d2unlearn.data.tables import sheet_rows, table_rows
from d2unlearn.errors import DataError
from d2unlearn.runtime import fingerprint
from d2unlearn.schema import Example

_Made = TypeVar("_Made")
_Row = tuple[str, object]
"""(FILE:LINE, what stands there: a line of JSON, the row's columns, or what is wrong with it)."""

MAX_NAMED = 10
NOT_JSON = (ValueError, RecursionError)
"""What `json` raises: for a mistake, a number of thousands of digits, brackets in brackets without end."""
BETWEEN_ITEMS = re.compile(r"[\s,]*")


def read_examples(
    source: str | Path | Sequence[str], *, group_size: int | None = None, columns: Mapping[str, str] | None = None
) -> list[Example]:
    """All rows of a data set, in order; of several, one after the other. Files of one name are told apart by their paths.

    `columns`: {known name: the file's heading}, for headings of one's own (`{"question": "Frage", "answer": "Antwort"}`).
    `group_size` says that rows come in blocks of that many that belong together (TOFU: 20 questions an author), where the file
    has no group column. Raises `DataError` for a file that is missing, empty or of no known format, and for bad rows, all of
    them named; a fault of the headings once.
    """

    if isinstance(source, str | Path):
        return _read_one(source, group_size, columns, 0)
    twice = next((each for each in source if list(source).count(each) > 1), None)
    if twice is not None:
        raise DataError(f"{twice} is given twice; its rows would count twice")
    examples: list[Example] = []
    blocks = 0
    names = [Path(each).name for each in source]
    for each, name in zip(source, names, strict=True):
        rows = _read_one(each, group_size, columns, blocks)
        blocks += 0 if group_size is None else -(-len(rows) // group_size)
        examples += rows if names.count(name) == 1 else [_placed(row, each) for row in rows]
    return examples


def source_names(source: str | Sequence[str]) -> str:
    """One data set or several as a person reads of them."""
    return source if isinstance(source, str) else ", ".join(source)


def read_prompts(path: Path) -> list[tuple[str, Mapping[str, Any], str]]:
    """(FILE:LINE, columns, prompt) of every row of a JSONL file, in order: its `prompt`, else its `question`.

    Raises `DataError` as `read_examples` does.
    """

    def prompt(_: int, where: str, row: Mapping[str, Any]) -> tuple[str, Mapping[str, Any], str]:
        column = next((name for name in ("prompt", "question") if name in row), None)
        if column is None:
            raise DataError(f"{where}: a row needs a prompt or a question, not only {', '.join(row) or 'braces'}")
        return where, row, text_of(where, column, row[column])

    return _all_or_every_mistake(path, _jsonl_rows(path), prompt)


def read_columns(source: str | Path, texts: Sequence[str]) -> list[tuple[str, Mapping[str, Any]]]:
    """(FILE:LINE, columns) of every row of a data set, where the named columns are texts that are not empty.

    Raises `DataError` as `read_examples` does.
    """

    def columns(_: int, where: str, given: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
        row = {heading(name, texts): value for name, value in given.items()}
        return where, {**row, **{name: text_of(where, name, row.get(name)) for name in texts}}

    return _all_or_every_mistake(source, _rows(source), columns)


def file_of(folder: str | Path, name: str) -> Path | None:
    """The data set of this name in a folder; None where there is none."""
    files = (Path(folder) / f"{name}{suffix}" for suffix in (".jsonl", ".json", ".parquet"))
    return next((path for path in files if path.is_file()), None)


def split_file(folder: Path, split: str) -> Path:
    """`file_of`, for a benchmark's split. Raises `DataError`, which names the splits that are there, where it is not."""
    path = file_of(folder, split)
    if path is None:
        there = sorted({file.stem for file in folder.glob("*") if file_of(folder, file.stem) is not None})
        raise DataError(f"{folder} has no {split}.jsonl; splits there: {', '.join(there) or 'none'}")
    return path


def content_hash(example: Example) -> str:
    """sha256 of prompt and answer: the same row has the same hash wherever it stands."""
    return fingerprint([[list(message) for message in example.prompt], example.answer])


def _read_one(source: str | Path, group_size: int | None, columns: Mapping[str, str] | None, first_block: int) -> list[Example]:
    def example(index: int, where: str, row: Mapping[str, Any]) -> Example:
        block = None if group_size is None else f"block-{first_block + index // group_size}"
        return example_of(named(where, row, columns), where, group=block)

    return _all_or_every_mistake(source, _rows(source), example)


def _placed(row: Example, path: str) -> Example:
    where = f"{path}:{row.source.rpartition(':')[2]}"
    return replace(row, example_id=where, source=where)


def _all_or_every_mistake(
    source: str | Path, rows: Iterator[_Row], make: Callable[[int, str, Mapping[str, Any]], _Made]
) -> list[_Made]:
    """`make(index, where, columns)` of every row. Raises `DataError` for bad rows, all of them named, and for no rows."""
    made: list[_Made] = []
    mistakes: list[str] = []
    headings: Counter[str] = Counter()
    for index, (where, row) in enumerate(rows):
        try:
            made.append(make(index, where, _columns(where, row)))
        except DataError as error:
            said = error.said if isinstance(error, HeadingError) else ""
            headings[said] += bool(said)
            mistakes += [str(error)] if headings[said] < 2 else []
    if mistakes:
        more = f"; and {len(mistakes) - MAX_NAMED} more" if len(mistakes) > MAX_NAMED else ""
        raise DataError("; ".join(mistakes[:MAX_NAMED]) + more)
    if not made:
        raise DataError(f"{source} holds no rows")
    return made


def _rows(source: str | Path) -> Iterator[_Row]:
    """(FILE:LINE, columns) of every row, whatever the file format."""
    if str(source).startswith("hf:"):
        return _hub_rows(str(source))
    path = Path(source)
    if not path.exists():
        raise DataError(f"{path} does not exist")
    if path.is_dir():
        return _saved_rows(path)
    if path.suffix.lower() not in _READERS:
        raise DataError(f"{path} is not a {', '.join(_READERS)} file")
    return _READERS[path.suffix.lower()](path)


def _jsonl_rows(path: Path) -> Iterator[_Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.removeprefix(codecs.BOM_UTF8).strip():
                yield f"{path.name}:{number}", line


def _json_rows(path: Path) -> Iterator[_Row]:
    text = _decoded(path.name, path.read_bytes())
    try:
        rows = _parsed(text)
    except NOT_JSON as error:
        if getattr(error, "msg", "") == "Extra data" and text.lstrip().startswith("{"):
            yield from _jsonl_rows(path)
            return
        raise _not_json(f"{path.name}:{getattr(error, 'lineno', 1)}", error) from None
    if not isinstance(rows, list):
        raise DataError(f"{path.name}: should hold a list of rows, not {type(rows).__name__}")
    for line, row in zip(_lines_of_items(text), rows, strict=True):
        yield f"{path.name}:{line}", row


def _lines_of_items(text: str) -> Iterator[int]:
    """The line on which each item of a JSON list begins. text: known to be a JSON list."""
    decoder, end, line = json.JSONDecoder(), text.index("[") + 1, 1 + text[: text.index("[")].count("\n")
    while text[start := BETWEEN_ITEMS.match(text, end).end()] != "]":  # type: ignore[union-attr]
        line += text.count("\n", end, start)
        yield line
        _, end = decoder.raw_decode(text, start)
        line += text.count("\n", start, end)


def _csv_rows(path: Path) -> Iterator[_Row]:
    return table_rows(path.name, _decoded(path.name, path.read_bytes()))


def _tsv_rows(path: Path) -> Iterator[_Row]:
    return table_rows(path.name, _decoded(path.name, path.read_bytes()), "\t")


def _parquet_rows(path: Path) -> Iterator[_Row]:
    import pyarrow
    import pyarrow.parquet as parquet  # comes with datasets

    try:
        rows = parquet.read_table(path).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path.name}: not a Parquet file, or cut short ({error})") from None
    return _numbered(path.name, rows)


def _saved_rows(path: Path) -> Iterator[_Row]:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is a folder, but not one that datasets.save_to_disk wrote ({error})") from None
    if isinstance(loaded, datasets.DatasetDict):
        raise DataError(f"{path} holds the splits {', '.join(loaded)}; name one, e.g. {path / next(iter(loaded))}")
    return _numbered(path.name, loaded)


def _hub_rows(name: str) -> Iterator[_Row]:
    import datasets

    repository, *rest = name.removeprefix("hf:").split(":")
    config = rest[0] if rest else None
    split = rest[1] if len(rest) > 1 else "train"
    try:
        loaded = datasets.load_dataset(repository, config, split=split)
    except Exception as error:  # whatever the hub client raises: no network, no such name, no such split
        raise DataError(f"{name} could not be loaded from the hub: {error}") from error
    return _numbered(name, loaded)


def _numbered(name: str, rows: Iterable[object]) -> Iterator[_Row]:
    return ((f"{name}:{number}", row) for number, row in enumerate(rows, start=1))


_READERS: dict[str, Callable[[Path], Iterator[_Row]]] = {
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".tsv": _tsv_rows,
    ".xlsx": sheet_rows,
    ".parquet": _parquet_rows,
}


def _columns(where: str, row: object) -> Mapping[str, Any]:
    """A row's columns. Raises `DataError` for what has none."""
    if isinstance(row, bytes):
        try:
            row = _parsed(_decoded(where, row))
        except NOT_JSON as error:
            raise _not_json(where, error) from None
    if isinstance(row, DataError):
        raise row
    if not isinstance(row, dict):
        raise DataError(f"{where}: should be an object with columns, not {type(row).__name__}")
    return row


def _parsed(text: str) -> Any:
    """What a text of JSON says. Raises one of `NOT_JSON`, also for NaN and infinite numbers, that could not be written back."""
    return json.loads(text, object_pairs_hook=_once, parse_constant=_not_finite, parse_float=_finite)


def _not_finite(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON; null stands for a value that is missing")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        _not_finite(digits)
    return number


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Raises `ValueError` for a name that stands twice in it."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)} stands twice in an object")
    return found


def _not_json(where: str, error: Exception) -> DataError:
    return DataError(f"{where}: not valid JSON ({getattr(error, 'msg', error)})")


def _decoded(where: str, content: bytes) -> str:
    """UTF-8 with or without a byte order mark."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from None
