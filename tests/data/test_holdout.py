"""Rows set aside: how many, by content and seed alone, equal rows together, found again by a later command."""

from __future__ import annotations

import random

import pytest

from d2unlearn.data.holdout import AT_LEAST, hold_out, split_validation
from d2unlearn.data.records import content_hash, example_of
from d2unlearn.runtime import fingerprint
from d2unlearn.schema import Example


def rows(n: int, start: int = 0) -> list[Example]:
    return [example_of({"question": f"Q{i}?", "answer": f"A{i}."}, f"rows.jsonl:{i + 1}") for i in range(start, start + n)]


def hashes(examples: list[Example]) -> set[str]:
    return {content_hash(example) for example in examples}


@pytest.mark.parametrize(("n", "set_aside"), [(1, 0), (2, 1), (3, 1), (300, 150), (799, 399), (801, 400), (4100, 410)])
def test_a_tenth_but_at_least_400_and_at_most_half_is_set_aside(n: int, set_aside: int) -> None:
    split = hold_out(rows(n), seed=0)
    assert (len(split.train), len(split.held_out)) == (n - set_aside, set_aside)
    assert hashes(split.train) & hashes(split.held_out) == set()
    assert AT_LEAST == 400


def test_both_parts_keep_the_file_s_order() -> None:
    given = rows(50)
    split = hold_out(given, seed=3)
    for part in split:
        assert [e.source for e in part] == [e.source for e in given if e in part]


def test_the_choice_depends_on_content_and_seed_and_not_on_order_or_place() -> None:
    given = rows(60)
    moved = [example_of({"prompt": e.question, "completion": e.answer}, f"other.csv:{i}") for i, e in enumerate(given)]
    random.Random(1).shuffle(moved)
    assert hashes(hold_out(given, seed=0).held_out) == hashes(hold_out(moved, seed=0).held_out)
    assert hashes(hold_out(given, seed=0).held_out) != hashes(hold_out(given, seed=1).held_out)


def test_equal_rows_fall_on_the_same_side() -> None:
    given = rows(20) + rows(10)
    split = hold_out(given, seed=0)
    assert len(split.train) + len(split.held_out) == 30
    assert hashes(split.train) & hashes(split.held_out) == set()


def test_every_row_has_the_same_chance() -> None:
    """Over 400 seeds each of 20 rows is set aside in half of them, within 5 standard errors of a binomial."""
    given = rows(20)
    counts = dict.fromkeys(hashes(given), 0)
    for seed in range(400):
        for each in hashes(hold_out(given, seed=seed).held_out):
            counts[each] += 1
    assert sum(counts.values()) == 400 * 10
    assert max(abs(count - 200) for count in counts.values()) <= 5 * 10


def test_validation_and_calibration_part_the_rows_set_aside() -> None:
    held_out = hold_out(rows(900), seed=0).held_out
    validation, calibration = split_validation(held_out, seed=0)
    assert (len(validation), len(calibration)) == (140, 260)
    assert hashes(validation) | hashes(calibration) == hashes(held_out)
    assert hashes(validation) & hashes(calibration) == set()
    again = split_validation(list(reversed(held_out)), seed=0)
    assert [hashes(part) for part in again] == [hashes(validation), hashes(calibration)]
    assert hashes(split_validation(held_out, seed=1)[0]) != hashes(validation)


def test_validation_is_drawn_anew_and_not_the_rows_that_were_drawn_first() -> None:
    held_out = hold_out(rows(200), seed=0).held_out
    drawn = sorted(hashes(held_out), key=lambda each: fingerprint([0, each]))
    validation = hashes(split_validation(held_out, seed=0)[0])
    assert len(validation) == 35
    assert len(validation & set(drawn[:35])) < 25


def test_nothing_to_split_gives_nothing() -> None:
    assert hold_out([], seed=0) == ([], [])
    assert split_validation([], seed=0) == ([], [])
