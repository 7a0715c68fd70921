"""Files as people have them: every separator, heading and format gives the same examples; faults of a heading are said once."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from d2unlearn.data.formats import example_of, named
from d2unlearn.data.records import read_columns, read_examples
from d2unlearn.errors import DataError
from d2unlearn.schema import Message

WANTED = [("Who wrote it, and when?", "Zoë; in 1987."), ("Where?", "In Łódź.")]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize(("separator", "suffix"), [(",", "csv"), (";", "csv"), ("\t", "csv"), ("\t", "tsv")])
@pytest.mark.parametrize("heading", [("question", "answer"), (" Question", "ANSWER "), ("Prompt", "Completion")])
def test_every_separator_and_heading_gives_the_same_rows(
    tmp_path: Path, heading: tuple[str, str], separator: str, suffix: str, mark: str
) -> None:
    lines = [separator.join(heading), *(separator.join(f'"{text}"' for text in pair) for pair in WANTED)]
    path = tmp_path / f"rows.{suffix}"
    path.write_text(mark + "\r\n".join(lines), encoding="utf-8")
    found = read_examples(path)
    assert [(row.question, row.answer) for row in found] == WANTED
    assert [row.source for row in found] == [f"rows.{suffix}:2", f"rows.{suffix}:3"]


def sheet(path: Path, *sheets: list[list[Any]]) -> Path:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for number, rows in enumerate(sheets):
        page = book.active if number == 0 else book.create_sheet()
        for row in rows:
            page.append(row)
    book.save(path)
    return path


def test_a_spreadsheet_is_read_with_its_numbers_and_dates_as_a_person_reads_them(tmp_path: Path) -> None:
    day = datetime.datetime(1987, 5, 4)
    rows = [["Question", "Answer", "Author"], ["Who?", "Zoë.", "a"], [], ["How many?", 42.0, "b"], ["When?", day, None]]
    found = read_examples(sheet(tmp_path / "rows.xlsx", rows, []))
    assert [(row.question, row.answer, row.group, row.source) for row in found] == [
        ("Who?", "Zoë.", "a", "rows.xlsx:2"),
        ("How many?", "42", "b", "rows.xlsx:4"),
        ("When?", "1987-05-04", None, "rows.xlsx:5"),
    ]
    with pytest.raises(DataError, match=r"^rows\.xlsx: has several sheets with rows \(Sheet, Sheet1\)"):
        read_examples(sheet(tmp_path / "rows.xlsx", rows, rows))
    (tmp_path / "rows.xlsx").write_bytes(b"PK and no more")
    with pytest.raises(DataError, match=r"^rows\.xlsx: not a spreadsheet, or cut short"):
        read_examples(tmp_path / "rows.xlsx")


def test_alpaca_and_sharegpt_rows_are_conversations() -> None:
    alpaca = example_of({"instruction": "Add.", "input": "1 and 2", "output": "3", "system": "Be short."})
    assert alpaca.prompt == (Message("system", "Be short."), Message("user", "Add.\n\n1 and 2"))
    assert (alpaca.answer, dict(alpaca.extra)) == ("3", {})
    assert example_of({"instruction": "Sing.", "input": "", "output": "La."}).prompt == (Message("user", "Sing."),)
    said = [("system", "Be short."), ("human", "Who?"), ("gpt", "I."), ("human", "Why?"), ("gpt", "So.")]
    shared = example_of({"conversations": [{"from": who, "value": text} for who, text in said]})
    assert [turn.role for turn in shared.prompt] == ["system", "user", "assistant", "user"]
    assert (shared.question, shared.answer) == ("Why?", "So.")


def test_a_format_whose_columns_are_all_empty_is_none(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    rows = [
        {"messages": None, "question": "Who?", "answer": "I."},
        {"messages": turns, "question": None, "answer": None},
        {"prompt": None, "completion": None, "question": "Who?", "answer": "I."},
    ]
    (tmp_path / "f.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [(row.question, row.answer) for row in read_examples(tmp_path / "f.jsonl")] == [
        ("Who?", "I."),
        ("Q", "A"),
        ("Who?", "I."),
    ]


def test_headings_of_ones_own_are_named_and_one_that_is_not_there_is_said_once(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("Frage;Antwort;answer\nWer?;Ich.;no\nWo?;Hier.;no\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"^rows\.csv:2: the column answer stands twice$"):
        read_examples(path, columns={"question": "Frage", "answer": "Antwort"})
    path.write_text("Frage;Antwort;Quelle\nWer?;Ich.;a\nWo?;Hier.;b\n", encoding="utf-8")
    found = read_examples(path, columns={"question": "frage", "answer": "Antwort", "group": "Quelle"})
    assert [(row.question, row.answer, row.group) for row in found] == [("Wer?", "Ich.", "a"), ("Wo?", "Hier.", "b")]
    with pytest.raises(DataError, match=r"^rows\.csv:2: there is no column Fragen; the columns are Frage, Antwort, Quelle$"):
        read_examples(path, columns={"question": "Fragen", "answer": "Antwort"})
    with pytest.raises(DataError, match=r"^rows\.csv:2: columns Frage, Antwort, Quelle match no known format \([^:]*\)$"):
        read_examples(path)
    assert named("row", {"QUESTION": 1, "Other": 2}) == {"question": 1, "Other": 2}


def test_columns_of_a_benchmark_are_found_in_any_letter_case(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"GT": "x", "Prompt": "y"}\n')
    assert read_columns(tmp_path / "rows.jsonl", ("prompt", "gt")) == [("rows.jsonl:1", {"gt": "x", "prompt": "y"})]
