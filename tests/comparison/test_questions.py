"""Validation and test questions: no question is both, whatever the seed; groups stay whole; nothing depends on file order."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from d2unlearn.comparison.questions import SplitQuestions, divide, held_out_rows
from d2unlearn.data.records import content_hash
from d2unlearn.errors import DataError
from d2unlearn.schema import Example, Message
from d2unlearn.stats import smallest_n


def rows(about: str, n: int, size: int | None = 4) -> list[Example]:
    return [
        Example(
            f"{about}:{i}",
            (Message("user", f"What of {about} {i}?"),),
            f"{about} {i}.",
            f"{about}:{i}",
            None if size is None else f"{about}-{i // size}",
        )
        for i in range(n)
    ]


FORGET, RETAIN = rows("forget", 40), rows("retain", 400)
REWORDED = [replace(row, prompt=(Message("user", f"Tell me: {row.question}"),)) for row in FORGET]
SEEN = [replace(row, prompt=(Message("user", f"Tell me: {row.question}"),)) for row in RETAIN[:60]]


def divided(test_rows: int = 50) -> SplitQuestions:
    further = {"reworded": ("forget", REWORDED), "retain_reworded": ("retain", SEEN)}
    return divide(FORGET, RETAIN, further, test_rows=test_rows)  # type: ignore[arg-type]


def answers(examples: object) -> set[str]:
    return {row.answer for row in examples}  # type: ignore[attr-defined]


def test_a_quarter_of_the_authors_validates_and_the_others_test() -> None:
    found = divided()
    chosen = {row.group for row in found.validation}
    assert len(chosen) == round(0.25 * 10)
    assert len(found.validation) == 4 * len(chosen)
    tested = next(test for test in found.tests if test.name == "forget")
    assert {row.group for row in tested.examples} == {row.group for row in FORGET} - chosen
    assert found.forget == tuple(FORGET)


@pytest.mark.parametrize("seed", range(6))
def test_no_question_is_validation_and_test_whatever_the_seed(seed: int) -> None:
    found = divided()
    held = held_out_rows(found, seed)
    tested = {test.name: answers(test.examples) for test in found.tests}
    assert not answers(found.validation) & (tested["forget"] | tested["reworded"])
    assert not answers(held.validation) & (tested["retain"] | tested["retain_reworded"])
    assert not {content_hash(row) for row in found.retain} & {content_hash(row) for row in found.tests[1].examples}
    assert not answers(held.train) & answers(held.validation)
    assert not answers(held.calibration) & (answers(held.validation) | answers(held.train))


def test_test_rows_are_drawn_by_content_and_not_by_their_place_in_the_file() -> None:
    found = divided()
    turned = divide(FORGET, RETAIN[::-1], {}, test_rows=50)
    assert {content_hash(r) for r in found.tests[1].examples} == {content_hash(r) for r in turned.tests[1].examples}
    assert (len(found.tests[1].examples), len(found.retain)) == (50, 350)


def test_at_most_a_quarter_of_the_retained_rows_is_taken_for_tests() -> None:
    assert len(divided(test_rows=5000).tests[1].examples) == 100


def test_without_two_groups_rows_are_divided_by_themselves() -> None:
    for size in (None, 1000):
        found = divide(rows("x", 40, size), RETAIN, {}, test_rows=50)
        assert (len(found.validation), len(found.tests[0].examples)) == (10, 30)


def test_too_little_to_divide_is_an_error() -> None:
    with pytest.raises(DataError, match="none are left for forget"):
        divide(rows("one", 1), RETAIN, {}, test_rows=5)
    with pytest.raises(DataError, match="none are left for retain"):
        divide(FORGET, RETAIN[:1], {}, test_rows=5)
    everything = divide(FORGET, RETAIN, {"all": ("retain", RETAIN)}, test_rows=5)
    with pytest.raises(DataError, match="no retained row is left to choose by"):
        held_out_rows(everything, 0)


def test_the_documentation_says_how_many_retained_rows_a_gate_needs() -> None:
    """405 for 1%, as docs/comparison.md says: of 404, too few are left to set a threshold by."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "comparison.md").read_text(encoding="utf-8")
    stated = int(re.findall(r"at most 1% needs (\d+) retained rows", page)[0])
    for n, enough in ((stated, True), (stated - 1, False)):
        calibration = held_out_rows(divide(FORGET, rows("retain", n), {}, test_rows=400), 0).calibration
        assert (len(calibration) >= smallest_n(0.01)) == enough
