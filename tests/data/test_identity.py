"""One row saved by two programs is one row: when it is drawn, set aside, found again, and when it is on both sides."""

from __future__ import annotations

import unicodedata

import pytest

from d2unlearn.data.check import inspect
from d2unlearn.data.holdout import hold_out, split_validation
from d2unlearn.data.identity import folded, folded_key, is_among, row_key
from d2unlearn.data.records import content_hash, example_of
from d2unlearn.schema import Example


def row(question: str, answer: str) -> Example:
    return example_of({"question": question, "answer": answer})


PLAIN = row("Where is Zoë from?", "From Łódź,\nI think.")
SAVED_ANEW = [
    row("Where is Zoë from?", "From Łódź,\nI think. "),
    row(" Where is Zoë from?\t", "From Łódź,\r\nI think.\r"),
    row(unicodedata.normalize("NFD", "Where is Zoë from?"), unicodedata.normalize("NFD", "From Łódź,\nI think.")),
]
FOLDED_ONLY = [row("WHERE is Zoë from?", "from łódź, i think."), row("Where  is Zoë from?", "From Łódź, I think.")]


@pytest.mark.parametrize("other", SAVED_ANEW)
def test_a_row_that_was_saved_anew_has_the_key_of_the_one_it_was(other: Example) -> None:
    assert content_hash(other) != content_hash(PLAIN)
    assert row_key(other) == row_key(PLAIN) == content_hash(PLAIN)
    assert is_among(other, {content_hash(PLAIN)})  # as a version before kept it
    assert is_among(other, {content_hash(other)})


@pytest.mark.parametrize("other", FOLDED_ONLY)
def test_case_and_inner_spacing_are_told_apart_by_the_key_and_not_by_the_coarser_one(other: Example) -> None:
    assert row_key(other) != row_key(PLAIN)
    assert folded_key(other) == folded_key(PLAIN)
    assert folded("STRASSE\u00a0 1") == folded("Straße 1")
    assert folded_key(row("Q", "A")) != folded_key(row("A", "Q"))


def test_rows_that_differ_in_case_fall_on_one_side_and_a_file_saved_anew_is_divided_alike() -> None:
    rows = [row(f"Question {i}?", f"Answer {i}.") for i in range(40)]
    shouted = [row(f"QUESTION {i}?", f"ANSWER {i}.") for i in range(40)]
    anew = [row(f"Question {i}?\r", f" Answer {i}.\r\n") for i in range(40)]
    for seed in range(5):
        parts = hold_out(rows, seed=seed)
        assert {row_key(e) for e in hold_out(anew, seed=seed).held_out} == {row_key(e) for e in parts.held_out}
        both = hold_out([*rows, *shouted], seed=seed)
        assert {folded_key(e) for e in both.train} & {folded_key(e) for e in both.held_out} == set()
        one, other = split_validation([*rows, *shouted], seed=seed)
        assert {folded_key(e) for e in one} & {folded_key(e) for e in other} == set()
        assert len(one) + len(other) == 80


def test_a_row_twice_but_for_case_and_spacing_is_a_duplicate() -> None:
    assert inspect([PLAIN, *SAVED_ANEW, *FOLDED_ONLY], None).rows == 6
    given = [example_of({"question": "Q?", "answer": a}, f"f:{i}") for i, a in enumerate(["A.", "B.", "a.\r"])]
    assert inspect(given, None).duplicates == (("f:0", "f:2"),)
