"""Every format and file type gives the same examples; every bad row is named by file and line, all of them together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from d2unlearn.data.records import content_hash, example_of, read_examples, read_prompts
from d2unlearn.errors import DataError
from d2unlearn.schema import Message

ROWS = [
    {"question": "Who wrote “Ash”?", "answer": "Zoë.", "author": "a"},
    {"question": "Where,\nand when?", "answer": 'In "Łódź", 1987.', "author": "b"},
    {"question": "Again?", "answer": "No.", "author": "b"},
]


def jsonl(path: Path, rows: list[dict[str, Any]] | None = None) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows or ROWS), encoding="utf-8")
    return path


def as_jsonl(folder: Path) -> Path:
    return jsonl(folder / "rows.jsonl")


def as_json(folder: Path) -> Path:
    path = folder / "rows.json"
    path.write_text(json.dumps(ROWS, indent=2, ensure_ascii=False), encoding="utf-8")
    return path


def as_json_lines_under_the_name_json(folder: Path) -> Path:
    return jsonl(folder / "rows.json")


def as_csv(folder: Path) -> Path:
    datasets.Dataset.from_list(ROWS).to_csv(str(folder / "rows.csv"))
    return folder / "rows.csv"


def as_parquet(folder: Path) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "rows.parquet")
    return folder / "rows.parquet"


def as_saved(folder: Path) -> Path:
    datasets.Dataset.from_list(ROWS).save_to_disk(str(folder / "rows"))
    return folder / "rows"


def as_split_of_saved(folder: Path) -> Path:
    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(str(folder / "saved"))
    return folder / "saved" / "train"


WRITERS = [as_jsonl, as_json, as_json_lines_under_the_name_json, as_csv, as_parquet, as_saved, as_split_of_saved]


@pytest.mark.parametrize("write", WRITERS)
def test_every_file_type_gives_the_same_examples(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    found = read_examples(write(tmp_path))
    assert [(e.question, e.answer, e.group) for e in found] == [(r["question"], r["answer"], r["author"]) for r in ROWS]
    assert [e.prompt for e in found] == [(Message("user", r["question"]),) for r in ROWS]
    assert [e.extra["author"] for e in found] == ["a", "b", "b"]
    assert len({e.example_id for e in found}) == 3


@pytest.mark.parametrize(
    ("write", "lines"),
    [(as_jsonl, (1, 2, 3)), (as_json, (2, 7, 12)), (as_csv, (2, 3, 5)), (as_parquet, (1, 2, 3))],
)
def test_a_row_s_source_is_the_line_where_it_begins(
    tmp_path: Path, write: Callable[[Path], Path], lines: tuple[int, ...]
) -> None:
    path = write(tmp_path)
    assert [e.source for e in read_examples(path)] == [f"{path.name}:{line}" for line in lines]


CONVERSATION = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Q"}]
ANSWER = {"role": "assistant", "content": "A"}
TURNS = (Message("system", "Be kind."), Message("user", "Q"))
FORMATS: dict[str, tuple[dict[str, Any], tuple[Message, ...]]] = {
    "prompt-completion": ({"prompt": "Q", "completion": "A"}, (Message("user", "Q"),)),
    "prompt-completion-messages": ({"prompt": CONVERSATION, "completion": [ANSWER]}, TURNS),
    "prompt-messages-completion-text": ({"prompt": CONVERSATION, "completion": "A"}, TURNS),
    "question-answer": ({"question": "Q", "answer": "A"}, (Message("user", "Q"),)),
    "messages": ({"messages": [*CONVERSATION, ANSWER]}, TURNS),
    "text": ({"text": "A"}, ()),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_every_format_is_told_by_its_columns(tmp_path: Path, name: str, suffix: str) -> None:
    row, prompt = FORMATS[name]
    path = tmp_path / f"rows.{suffix}"
    if suffix == "jsonl":
        jsonl(path, [row])
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    (found,) = read_examples(path)
    assert (found.prompt, found.answer, dict(found.extra)) == (prompt, "A", {})
    assert found.question == ("Q" if prompt else "")
    assert content_hash(found) == content_hash(example_of(row))


def test_columns_beside_the_format_s_own_are_kept_and_a_group_is_found_among_them(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "rows.jsonl",
        [
            {"question": "Q", "answer": "A", "group": "g", "author": "not this", "n": 3},
            {"question": "Q", "answer": "A", "group": None, "author": 7},
            {"question": "Q", "answer": "A"},
        ],
    )
    found = read_examples(path, group_size=2)
    assert [e.group for e in found] == ["g", "7", "block-1"]
    assert dict(found[0].extra) == {"group": "g", "author": "not this", "n": 3}
    assert [e.group for e in read_examples(path)] == ["g", "7", None]


def test_the_hub_is_asked_for_name_configuration_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def load_dataset(name: str, config: str | None = None, *, split: str) -> datasets.Dataset:
        asked.append((name, config, split))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for source in ("hf:locuslab/TOFU", "hf:locuslab/TOFU:forget10", "hf:locuslab/TOFU:forget10:test"):
        assert [e.answer for e in read_examples(source)] == [r["answer"] for r in ROWS]
        assert [e.source for e in read_examples(source)] == [f"{source}:{i}" for i in (1, 2, 3)]
    assert asked[::2] == [
        ("locuslab/TOFU", None, "train"),
        ("locuslab/TOFU", "forget10", "train"),
        ("locuslab/TOFU", "forget10", "test"),
    ]


def test_a_hub_that_does_not_answer_is_an_error_that_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: object, **__: object) -> None:
        raise ConnectionError("no route to the hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"hf:a/b could not be loaded from the hub: no route to the hub"):
        read_examples("hf:a/b")


GOOD = '{"question": "Q", "answer": "A"}'
BAD_LINES = [
    ("{not json", "not valid JSON"),
    ("[1, 2]", "should be an object with columns, not list"),
    ('"text"', "should be an object with columns, not str"),
    ("{}", "columns (none) match no known format"),
    ('{"question": "Q"}', "columns question match no known format"),
    ('{"question": "Q", "answer": ""}', "answer should be a text that is not empty, not ''"),
    ('{"question": " \\n ", "answer": "A"}', "question should be a text that is not empty"),
    ('{"question": 3, "answer": "A"}', "question should be a text that is not empty, not 3"),
    ('{"question": NaN, "answer": "A"}', "not valid JSON (NaN is no number of JSON"),
    ('{"question": "Q", "answer": null}', "answer should be a text that is not empty, not None"),
    ('{"question": "\\ud83d", "answer": "A"}', "question holds half of a surrogate pair"),
    ('{"text": ["A"]}', "text should be a text"),
    ('{"prompt": [], "completion": "A"}', "prompt should be a list of messages that is not empty, not []"),
    ('{"prompt": ["Q"], "completion": "A"}', "each of prompt should have role and content, not 'Q'"),
    ('{"prompt": "Q", "completion": []}', "completion should be a list of messages that is not empty, not []"),
    ('{"prompt": "Q", "completion": [{"role": "user", "content": "A"}]}', "one message, the assistant's, not user"),
    ('{"messages": "Q"}', "messages should be a list of messages that is not empty, not 'Q'"),
    ('{"messages": []}', "messages should be a list of messages that is not empty, not []"),
    ('{"messages": [{"role": "user", "content": "Q"}]}', "should end with the assistant's answer, not with user"),
    ('{"messages": [{"role": "assistant", "content": "A"}]}', "should hold a question before the answer"),
    ('{"messages": [{"role": "assistant"}]}', "messages.content should be a text that is not empty, not None"),
    ('{"messages": [{"role": 1, "content": "Q"}]}', "each of messages should have role and content"),
    ('{"question": ' + "9" * 5000 + ', "answer": "A"}', "not valid JSON (Exceeds the limit"),
    ('{"question": "Q", "answer": "A", "answer": "B"}', "not valid JSON (answer stands twice in an object)"),
    ('{"question": "Q", "Answer": "A", "answer": "B"}', "the column answer stands twice"),
    ('{"conversations": [{"role": "user", "content": "Q"}]}', "each of conversations should have from and value"),
    ("[" * 100_000, "not valid JSON (maximum recursion depth"),
]


@pytest.mark.parametrize(("line", "says"), BAD_LINES, ids=[says for _, says in BAD_LINES])
def test_a_bad_line_is_named_by_file_and_line(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{GOOD}\n\n{line}\n{GOOD}\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_examples(path)
    assert str(caught.value).startswith("rows.jsonl:3: ")
    assert says in str(caught.value)
    assert "; rows.jsonl" not in str(caught.value)


@pytest.mark.parametrize("row", ['{"question": "Q"}', '"text"', '{"question": "Q",\n "answer": 3}'])
def test_a_bad_row_of_a_json_list_is_named_by_the_line_where_it_begins(tmp_path: Path, row: str) -> None:
    lines = ["", "[{", '"question": "[{]", "answer": "\\n,"', '}, {"text": "],"}', ",", row, ', {"text": "T"}', "]"]
    (tmp_path / "rows.json").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DataError, match=r"^rows\.json:6: ") as caught:
        read_examples(tmp_path / "rows.json")
    assert "; rows" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"a": 1}', r"rows\.json: should hold a list of rows, not dict"),
        ('[{"text": "T"},\n{"text" "T"}]', r"rows\.json:2: not valid JSON"),
        (GOOD + "\n{", r"^rows\.json:2: not valid JSON \([^;]*$"),
        ("[]", "holds no rows"),
        ("", r"rows\.json:1: not valid JSON"),
    ],
)
def test_a_json_file_that_is_no_list_is_refused(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "rows.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=says):
        read_examples(tmp_path / "rows.json")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("question,answer\nQ,A\n\nQ\n", r"^rows\.csv:4: has another number of columns than the header$"),
        ("question,answer\nQ,A,more\n", r"^rows\.csv:2: has another number"),
        ('question,answer\n"two\nlines",A\n\n"two\nlines",\n', r"^rows\.csv:5: answer should be a text that is not empty"),
        ('question,answer\nQ,A\nQ,"A\nQ,A\n', r"^rows\.csv:3: not valid CSV \(unexpected end of data\)"),
        ("question|answer\nQ|A\nR|B\n", r"^rows\.csv:2: columns question\|answer match no known format[^:]*$"),
        ("question,answer,answer\nQ,A,B\n", r"^rows\.csv:1: the column answer stands twice in the header$"),
        ("Question;question;answer\nQ;Q;B\n", r"^rows\.csv:1: the column question stands twice in the header$"),
        ("question,answer\n", "holds no rows"),
        ("\n", "holds no rows"),
    ],
)
def test_a_bad_row_of_a_csv_file_is_named_by_the_line_where_it_begins(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "rows.csv").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=says):
        read_examples(tmp_path / "rows.csv")


def test_a_csv_field_may_be_a_whole_document(tmp_path: Path) -> None:
    document = "word " * 60_000
    (tmp_path / "rows.csv").write_text(f"text\n{document}\n", encoding="utf-8")
    assert read_examples(tmp_path / "rows.csv")[0].answer == document


def test_all_bad_rows_are_named_together_and_no_more_than_ten_in_full(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{GOOD}\n" + '{"text": ""}\n' * 3, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_examples(path)
    assert [part.split(": ")[0] for part in str(caught.value).split("; rows")] == ["rows.jsonl:2", ".jsonl:3", ".jsonl:4"]
    path.write_text('{"text": ""}\n' * 13, encoding="utf-8")
    with pytest.raises(DataError, match=r"rows\.jsonl:10: .*; and 3 more$") as caught:
        read_examples(path)
    assert "rows.jsonl:11" not in str(caught.value)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv"])
def test_a_byte_order_mark_line_ends_and_empty_lines_change_nothing(
    tmp_path: Path, suffix: str, mark: str, newline: str
) -> None:
    lines = {
        "jsonl": ["", '{"question": "Où?", "answer": "Là."}', "   ", '{"question": "Q", "answer": "A"}'],
        "json": ["", "[", '{"question": "Où?", "answer": "Là."},', '{"question": "Q", "answer": "A"}]'],
        "csv": ["question,answer", "", "Où?,Là.", "Q,A"],
    }[suffix]
    path = tmp_path / f"rows.{suffix}"
    path.write_bytes((mark + newline.join([*lines, ""])).encode())
    found = read_examples(path)
    assert [(e.question, e.answer) for e in found] == [("Où?", "Là."), ("Q", "A")]
    line = {"jsonl": 2, "json": 3, "csv": 3}[suffix]
    assert found[0].source == f"rows.{suffix}:{line}"


@pytest.mark.parametrize(
    ("suffix", "encoding", "says"),
    [
        ("jsonl", "latin-1", r"^rows\.jsonl:2: not UTF-8 text \(byte 15\); save the file as UTF-8$"),
        ("jsonl", "utf-16", r"^rows\.jsonl:1: not UTF-8 text \(byte 0\)"),
        ("json", "latin-1", r"^rows\.json: not UTF-8 text"),
        ("csv", "utf-16", r"^rows\.csv: not UTF-8 text"),
    ],
)
def test_another_encoding_is_refused_and_not_guessed(tmp_path: Path, suffix: str, encoding: str, says: str) -> None:
    path = tmp_path / f"rows.{suffix}"
    path.write_bytes((GOOD + '\n{"question": "Où?", "answer": "A"}\n').encode(encoding))
    with pytest.raises(DataError, match=says):
        read_examples(path)


def test_what_is_no_data_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text(GOOD)
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    cases = {
        "missing.jsonl": "does not exist",
        "rows.txt": "is not a .jsonl, .json, .csv, .tsv, .xlsx, .parquet file",
        "empty.jsonl": "holds no rows",
        "broken.parquet": "not a Parquet file, or cut short",
        ".": "is a folder, but not one that datasets.save_to_disk wrote",
    }
    for name, says in cases.items():
        with pytest.raises(DataError, match=says):
            read_examples(tmp_path / name)


def test_a_saved_data_set_that_is_damaged_or_whole_is_refused(tmp_path: Path) -> None:
    as_split_of_saved(tmp_path)
    with pytest.raises(DataError, match=rf"holds the splits train; name one, e\.g\. {tmp_path / 'saved' / 'train'}"):
        read_examples(tmp_path / "saved")
    folder = as_saved(tmp_path)
    (arrow,) = folder.glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:100])
    with pytest.raises(DataError, match="is a folder, but not one that"):
        read_examples(folder)
    (folder / "state.json").write_text("{")
    with pytest.raises(DataError, match="is a folder, but not one that"):
        read_examples(folder)


def test_equal_rows_have_equal_hashes_wherever_they_stand(tmp_path: Path) -> None:
    first, again, other = (read_examples(write(tmp_path)) for write in (as_jsonl, as_csv, as_json))
    assert [content_hash(e) for e in first] == [content_hash(e) for e in again] == [content_hash(e) for e in other]
    assert len({content_hash(e) for e in first}) == 3
    moved = example_of({"question": "Q A", "answer": "B"}), example_of({"question": "Q", "answer": "A B"})
    assert content_hash(moved[0]) != content_hash(moved[1])


def test_prompts_to_answer_come_with_their_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": 3, "prompt": "Q"}\n\n{"prompt": "R", "text": "kept"}\n', encoding="utf-8")
    assert read_prompts(path) == [
        ("rows.jsonl:1", {"id": 3, "prompt": "Q"}, "Q"),
        ("rows.jsonl:3", {"prompt": "R", "text": "kept"}, "R"),
    ]
    path.write_text('{"question": "Q", "answer": "A"}\n', encoding="utf-8")
    assert read_prompts(path) == [("rows.jsonl:1", {"question": "Q", "answer": "A"}, "Q")]
    path.write_text('{"id": 3}\n{"prompt": " "}\n{"prompt": "Q"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r":1: a row needs a prompt or a question, not only id; rows\.jsonl:2: prompt should"):
        read_prompts(path)


def test_several_files_are_read_one_after_the_other_and_their_rows_told_apart(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a/rows.jsonl", "b/rows.jsonl", "c.csv")]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
    paths[0].write_text("".join(json.dumps({"question": f"a{i}?", "answer": "x"}) + "\n" for i in range(3)))
    paths[1].write_text(json.dumps({"question": "b?", "answer": "x"}) + "\n")
    paths[2].write_text("question,answer\nc?,x\n")
    read = read_examples([str(path) for path in paths], group_size=2)
    assert [row.question for row in read] == ["a0?", "a1?", "a2?", "b?", "c?"]
    assert [row.group for row in read] == ["block-0", "block-0", "block-1", "block-2", "block-3"]
    assert [row.source for row in read] == [
        *(f"{paths[0]}:{line}" for line in (1, 2, 3)),
        f"{paths[1]}:1",
        "c.csv:2",
    ]
    assert [row.example_id for row in read] == [row.source for row in read]
    assert read_examples([str(paths[2])]) == read_examples(paths[2])
    with pytest.raises(DataError, match=r"c\.csv is given twice; its rows would count twice"):
        read_examples([str(paths[2]), str(paths[0]), str(paths[2])])


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_numbers_that_could_not_be_written_back_are_refused_by_file_and_line(tmp_path: Path, number: str) -> None:
    path = tmp_path / "asked.jsonl"
    path.write_text(f'{{"prompt": "Who?"}}\n{{"prompt": "Who?", "score": {number}}}\n')
    said = rf"asked\.jsonl:2: not valid JSON \({number} is no number of JSON"
    with pytest.raises(DataError, match=said):
        read_prompts(path)
    whole = tmp_path / "rows.json"
    whole.write_text(f'[{{"question": "Who?", "answer": "I.", "score": {number}}}]')
    with pytest.raises(DataError, match=rf"rows\.json:1: not valid JSON \({number} is no number of JSON"):
        read_examples(whole)
