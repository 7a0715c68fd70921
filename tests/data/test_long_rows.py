"""Rows longer than what is read at once: windows that lose nothing, what is cut and counted, what is refused and named."""

from __future__ import annotations

import numpy as np
import pytest

import tiny_models
from d2unlearn.data.long_rows import LongRows, fit_sets, fitted, long_rows_told, windows
from d2unlearn.data.records import example_of
from d2unlearn.data.template import Template
from d2unlearn.errors import DataError
from d2unlearn.schema import Example

TEMPLATE = Template(tiny_models.tokenizer())


def text(line: int, content: str, **columns: str) -> Example:
    return example_of({"text": content, **columns}, f"d.jsonl:{line}")


def asked(line: int, answer: str) -> Example:
    return example_of({"question": "it", "answer": answer}, f"d.jsonl:{line}")


@pytest.mark.parametrize("seed", range(5))
def test_windows_are_the_whole_text_overlap_and_fit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(list("ab é\n"), size=rng.integers(1, 40))) for _ in range(60)]
    whole, limit = " ".join(words) + "\n", int(rng.integers(5, 70))
    found = windows(whole, lambda part: len(part) <= limit)
    assert max(map(len, found)) <= limit
    done, before = 0, 0
    for part in found:
        start = whole.index(part, before)
        while not (start <= done < start + len(part)):
            start = whole.index(part, start + 1)
        before, done = start, start + len(part)
    assert done == len(whole)


def test_the_next_window_begins_with_an_eighth_of_the_one_before() -> None:
    whole = " ".join(f"w{n:02}" for n in range(40))
    found = windows(whole, lambda part: len(part.split()) <= 16)
    assert [part.split()[0] for part in found] == ["w00", "w14", "w28"]
    assert [part.split()[-1] for part in found] == ["w15", "w29", "w39"]
    assert windows(whole, lambda part: len(part) <= 1000) == [whole]


def test_a_text_without_spaces_is_divided_all_the_same() -> None:
    assert "".join(windows("abcdefghij", lambda part: len(part) <= 1)) == "abcdefghij"
    assert max(map(len, windows("x" * 50 + " y", lambda part: len(part) <= 4))) <= 4


def test_text_is_split_into_windows_of_one_group_and_nothing_is_lost() -> None:
    """<bos>, a token a word, <eos>: 10 of them hold 8 words."""
    rows = [text(1, "it was he " * 5 + "was"), text(2, "it was"), text(3, "she was a " * 4 + "city", group="g")]
    read, found = fitted(rows, TEMPLATE, 10, "forget")
    assert found == LongRows(rows=3, answer_tokens=17 + 3 + 14, limit=10, longer=2, split=2, windows=5)
    assert [(row.group, row.example_id, row.source) for row in read] == [
        ("d.jsonl:1", "d.jsonl:1#1", "d.jsonl:1 (part 1 of 3)"),
        ("d.jsonl:1", "d.jsonl:1#2", "d.jsonl:1 (part 2 of 3)"),
        ("d.jsonl:1", "d.jsonl:1#3", "d.jsonl:1 (part 3 of 3)"),
        (None, "d.jsonl:2", "d.jsonl:2"),
        ("g", "d.jsonl:3#1", "d.jsonl:3 (part 1 of 2)"),
        ("g", "d.jsonl:3#2", "d.jsonl:3 (part 2 of 2)"),
    ]
    assert max(len(TEMPLATE.tokens(row).input_ids) for row in read) <= 10
    assert list(long_rows_told(found, "forget", "unlearned")) == [
        "2 of 3 forget rows are longer than 10 tokens: split into 5 overlapping windows, those of one row in one group (--long)"
    ]


def test_rows_that_differ_behind_the_limit_are_different_rows() -> None:
    one, other = (fitted([text(1, "it was " * 8 + end)], TEMPLATE, 10, "forget")[0] for end in ("Paris", "Berlin"))
    assert [row.answer for row in one] != [row.answer for row in other]


def test_rows_to_keep_are_cut_and_what_is_lost_is_counted() -> None:
    """<bos><q>it<a>, then a token a word and <eos>: of 13 tokens 9 are answer, and 3 lie behind the tenth."""
    rows = [asked(1, "it was he was it was he was"), asked(2, "it")]
    read, found = fitted(rows, TEMPLATE, 10, "retain")
    assert read == rows
    assert found == LongRows(rows=2, answer_tokens=9 + 2, limit=10, longer=1, cut=1, lost_tokens=3)
    assert list(long_rows_told(found, "retain", "trained on")) == [
        "1 of 2 retain rows are longer than 10 tokens and cut there: 3 of 11 answer tokens are not trained on "
        "(--max-length, --long)"
    ]
    assert fitted(rows, TEMPLATE, 10, "forget", "cut") == (read, found)
    assert fitted(rows[1:], TEMPLATE, 10, "forget") == (rows[1:], LongRows(1, 2, 10))
    assert fit_sets({"a": (rows, "retain"), "b": (rows[1:], "forget")}, TEMPLATE, 10, None) == (
        {"a": rows, "b": rows[1:]},
        {"a": found},
    )


@pytest.mark.parametrize(
    ("way", "kind", "row", "said"),
    [
        (
            None,
            "forget",
            asked(4, "it was " * 4),
            r"^1 of 1 rows are longer than 10 tokens \(d\.jsonl:4 has 14\), and what is cut",
        ),
        (
            "refuse",
            "retain",
            asked(4, "it was " * 4),
            r"^1 of 1 rows are longer than 10 tokens \(d\.jsonl:4 has 14\), and what",
        ),
        ("refuse", "forget", text(4, "it was " * 5), r"^1 of 1 rows are longer than 10 tokens \(d\.jsonl:4 has 13\), and what"),
        ("split", "retain", asked(4, "it was " * 4), r"and a row with a prompt cannot be split; give a larger --max-length"),
    ],
)
def test_what_is_not_to_be_cut_is_refused_by_file_and_line(way: str | None, kind: str, row: Example, said: str) -> None:
    with pytest.raises(DataError, match=said):
        fitted([row], TEMPLATE, 10, kind, way)  # type: ignore[arg-type]


def test_a_prompt_that_fills_the_limit_is_refused_whatever_the_way() -> None:
    row = example_of({"question": "it was " * 5, "answer": "it"}, "d.jsonl:2")
    for way in (None, "cut", "split", "refuse"):
        with pytest.raises(DataError, match=r"^d\.jsonl:2: the prompt alone is longer than 10 tokens"):
            fitted([row], TEMPLATE, 10, "retain", way)  # type: ignore[arg-type]
