"""Rows of tables: CSV, TSV and spreadsheets, as people's programs write them.

What separates a CSV file's columns (comma, semicolon, tab) is told by its heading. A spreadsheet has one sheet with rows in it.
"""

from __future__ import annotations

import csv
import datetime
import io
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from d2unlearn.data.formats import KNOWN, heading
from d2unlearn.errors import DataError

SEPARATORS = (",", ";", "\t")


def table_rows(name: str, text: str, separators: Collection[str] = SEPARATORS) -> Iterator[tuple[str, object]]:
    """(FILE:LINE, columns, or what is wrong with the row) of a CSV or TSV file's text; empty lines are none."""
    limit = csv.field_size_limit(len(text) + 1)  # a field may be a whole document
    try:
        yield from _records(name, _reader(text, max(separators, key=lambda separator: _fit(text, separator))))
    finally:
        csv.field_size_limit(limit)


def sheet_rows(path: Path) -> Iterator[tuple[str, object]]:
    """The same of a spreadsheet; numbers, dates and truth values are written as text.

    Raises `DataError` where openpyxl is not installed, for a file that is no spreadsheet, and for several sheets with rows.
    """
    try:
        import openpyxl
    except ModuleNotFoundError:
        raise DataError(f"{path.name}: spreadsheets are read by openpyxl: pip install 'd2unlearn[xlsx]'") from None
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        sheets = {sheet.title: [list(row) for row in sheet.iter_rows(values_only=True)] for sheet in book.worksheets}
        book.close()
    except Exception as error:  # whatever a damaged archive or its XML raises
        raise DataError(f"{path.name}: not a spreadsheet, or cut short ({error})") from None
    filled = [title for title, rows in sheets.items() if any(cell is not None for row in rows for cell in row)]
    if len(filled) > 1:
        raise DataError(f"{path.name}: has several sheets with rows ({', '.join(filled)}); save the one to be read by itself")
    for title in filled:
        yield from _sheet(path.name, sheets[title])


def _sheet(name: str, rows: list[list[Any]]) -> Iterator[tuple[str, object]]:
    header: list[str] = []
    for number, row in enumerate(rows, start=1):
        cells = [_written(cell) for cell in row]
        if not any(cells):
            continue
        if any(cells[len(header) :]) and header:
            yield f"{name}:{number}", DataError(f"{name}:{number}: has another number of columns than the header")
        elif header:
            padded = [*cells, *[None] * len(header)][: len(header)]
            yield f"{name}:{number}", {column: cell for column, cell in zip(header, padded, strict=True) if column}
        else:
            header = _header(f"{name}:{number}", [cell or "" for cell in cells])


def _written(cell: Any) -> str | None:
    """A cell as a person reads it; None for an empty one."""
    if cell is None or isinstance(cell, str):
        return cell
    if isinstance(cell, datetime.datetime) and cell.time() == datetime.time():
        return cell.date().isoformat()
    if isinstance(cell, datetime.date | datetime.time):
        return cell.isoformat()
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)


def _reader(text: str, separator: str) -> Any:
    return csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator)


def _fit(text: str, separator: str) -> tuple[int, int]:
    """(columns of the heading that are known, columns) if this is the separator."""
    try:
        first: list[str] = next((row for row in _reader(text, separator) if row), [])
    except csv.Error:
        return 0, 0
    return sum(heading(name) in KNOWN for name in first), len(first)


def _records(name: str, reader: Any) -> Iterator[tuple[str, object]]:
    header: list[str] = []
    while True:
        where = f"{name}:{reader.line_num + 1}"
        try:
            values = next(reader, None)
        except csv.Error as error:
            raise DataError(f"{where}: not valid CSV ({error})") from None
        if values is None:
            return
        if not header:
            header = _header(where, values)
        elif values and len(values) == len(header):
            yield where, dict(zip(header, values, strict=True))
        elif values:
            yield where, DataError(f"{where}: has another number of columns than the header")


def _header(where: str, names: list[str]) -> list[str]:
    """The column names. Raises `DataError` for one that stands there twice, in whatever letter case if it is a known one."""
    known = [heading(name) for name in names if name.strip()]
    twice = next((name for name in known if known.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{where}: the column {twice} stands twice in the header")
    return names
