"""Which questions choose and which test: no test question is seen by any choice. Pure.

    forget    all rows are unlearned, whatever the method; a seeded quarter of their groups (authors) are validation questions,
              the rest are test questions
    retain    test questions are taken out before any method sees the file; of the rest `hold_out` sets rows aside, as in
              `unlearn`: some of them are validation questions, the others set the thresholds of gates and guards

What else is tested (other wordings, world facts) leaves out rows that answer a forgotten validation question; retained
validation questions leave out rows that answer a test question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from d2unlearn.data.holdout import hold_out, split_validation
from d2unlearn.data.identity import row_key
from d2unlearn.errors import DataError
from d2unlearn.evaluation.runner import NamedSet
from d2unlearn.runtime import fingerprint
from d2unlearn.schema import Example, Kind

_VALIDATION_SHARE = 0.25
_LARGEST_TEST_SHARE = 0.25
"""Of the retained rows, however many test rows were asked for."""


@dataclass(frozen=True)
class SplitQuestions:
    """forget: all rows to unlearn; validation: those of them that choices are made on; retain: the rows that methods get."""

    forget: tuple[Example, ...]
    validation: tuple[Example, ...]
    retain: tuple[Example, ...]
    tests: tuple[NamedSet, ...]


def divide(
    forget: Sequence[Example],
    retain: Sequence[Example],
    further: Mapping[str, tuple[Kind, Sequence[Example]]],
    *,
    test_rows: int,
    seed: int = 0,
) -> SplitQuestions:
    """The division of a split, the same for every entry and seed. Raises `DataError` when a test set would be empty."""
    chosen = _validation_rows(forget, seed)
    validation = [row for index, row in enumerate(forget) if index in chosen]
    tested = [row for index, row in enumerate(forget) if index not in chosen]
    drawn = _drawn(retain, min(test_rows, round(_LARGEST_TEST_SHARE * len(retain))), seed)
    kept_back = [row for row in retain if row_key(row) in drawn]
    validation_answers = {row.answer for row in validation}
    sets: dict[str, tuple[Kind, Sequence[Example]]] = {"forget": ("forget", tested), "retain": ("retain", kept_back), **further}
    tests = tuple(
        NamedSet(name, kind, tuple(row for row in rows if row.answer not in validation_answers))
        for name, (kind, rows) in sets.items()
    )
    empty = [test.name for test in tests if not test.examples]
    if empty or not validation:
        raise DataError(
            f"too few rows to tell validation from test questions: none are left for {', '.join(empty) or 'the former'}"
        )
    return SplitQuestions(tuple(forget), tuple(validation), tuple(row for row in retain if row_key(row) not in drawn), tests)


@dataclass(frozen=True)
class HeldOutRows:
    """What one seed makes of the retained rows: trained on, chosen by, and thresholds set by."""

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    calibration: tuple[Example, ...]


def held_out_rows(questions: SplitQuestions, seed: int) -> HeldOutRows:
    """The rows that `unlearn` and `calibrate` set aside with this seed. Raises `DataError` when none is left to choose by."""
    held = hold_out(questions.retain, seed=seed)
    validation, calibration = split_validation(held.held_out, seed=seed)
    tested = {row.answer for test in questions.tests if test.kind == "retain" for row in test.examples}
    left = tuple(row for row in validation if row.answer not in tested)
    if not left:
        raise DataError("no retained row is left to choose by: give more retained rows, or fewer test sets made of them")
    return HeldOutRows(tuple(held.train), left, tuple(calibration))


def _validation_rows(forget: Sequence[Example], seed: int) -> set[int]:
    """Indices of a quarter of the groups' rows; of the rows where there are no two groups."""
    labels = [row.group if row.group is not None else f"row {index}" for index, row in enumerate(forget)]
    names = list(dict.fromkeys(labels))
    if len(names) < 2:
        labels = [f"row {index}" for index in range(len(forget))]
        names = labels
    count = max(1, round(_VALIDATION_SHARE * len(names)))
    order = np.random.default_rng([seed, len(names)]).permutation(len(names))
    chosen = {names[index] for index in order[:count]}
    return {index for index, label in enumerate(labels) if label in chosen}


def _drawn(rows: Sequence[Example], count: int, seed: int) -> set[str]:
    """Keys of `count` distinct rows, drawn by seed and content alone."""
    distinct = {row_key(row) for row in rows}
    return set(sorted(distinct, key=lambda content: fingerprint(["test", seed, content]))[:count])
