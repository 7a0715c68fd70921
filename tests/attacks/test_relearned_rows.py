"""Which rows are relearned and which are asked for: disjoint in every choice, even over groups, the same for the same seed."""

from __future__ import annotations

from collections import Counter
from typing import get_args

import numpy as np
import pytest

from d2unlearn.attacks.reading import NotShownError
from d2unlearn.attacks.relearned_rows import Division, RowChoice, divided, named_halves, without_copies
from d2unlearn.schema import Example

CHOICES: tuple[RowChoice, ...] = get_args(RowChoice)
DRAWN: tuple[RowChoice, ...] = ("whole groups", "spread over groups", "one row", "half of each group")
GROUPS = [f"author-{index // 20}" for index in range(400)]
HALVES = ["T" if index % 4 < 2 else "V" for index in range(400)]


def of_groups(choice: RowChoice, seed: int = 0, share: float = 0.1) -> tuple[Counter[str], Counter[str]]:
    """How many rows of each group are relearned, and asked for."""
    division = divided(choice, GROUPS, HALVES, share=share, seed=seed)
    return Counter(GROUPS[i] for i in division.relearned), Counter(GROUPS[i] for i in division.asked)


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("seed", range(3))
def test_what_is_asked_for_is_never_relearned_and_nothing_else_is_left_out(choice: RowChoice, seed: int) -> None:
    relearned, asked = divided(choice, GROUPS, HALVES, share=0.1, seed=seed)
    assert set(relearned).isdisjoint(asked)
    assert sorted((*relearned, *asked)) == list(range(400))
    assert (relearned, asked) == (tuple(sorted(relearned)), tuple(sorted(asked)))
    assert divided(choice, GROUPS, HALVES, share=0.1, seed=seed) == (relearned, asked)


@pytest.mark.parametrize("choice", DRAWN)
def test_other_seeds_draw_other_rows(choice: RowChoice) -> None:
    assert len({divided(choice, GROUPS, share=0.1, seed=seed) for seed in range(5)}) == 5


def test_whole_groups_are_relearned_in_full_until_the_share_is_reached() -> None:
    relearned, asked = of_groups("whole groups")
    assert list(relearned.values()) == [20, 20]
    assert set(relearned).isdisjoint(asked)
    assert list(of_groups("whole groups", share=0.11)[0].values()) == [20, 20, 20]


def test_spread_rows_come_from_all_groups_alike() -> None:
    assert of_groups("spread over groups")[0] == dict.fromkeys(GROUPS, 2)
    uneven = of_groups("spread over groups", share=0.125)[0]
    assert (sum(uneven.values()), set(uneven.values())) == (50, {2, 3})


def test_of_each_group_one_half_is_relearned_and_the_other_asked() -> None:
    assert of_groups("half of each group") == (dict.fromkeys(GROUPS, 10), dict.fromkeys(GROUPS, 10))
    odd = ["a"] * 5 + ["b"] * 2 + ["alone"]
    relearned, asked = divided("half of each group", odd, share=0.1, seed=0)
    assert Counter(odd[i] for i in relearned) == {"a": 2, "b": 1}
    assert Counter(odd[i] for i in asked) == {"a": 3, "b": 1, "alone": 1}


def test_one_row_is_one_and_retained_rows_are_none() -> None:
    assert [len(side) for side in divided("one row", GROUPS, share=0.1, seed=0)] == [1, 399]
    assert divided("retained rows", GROUPS[:3], share=0.1, seed=0) == ((), (0, 1, 2))


def test_named_halves_are_taken_as_they_are_and_other_rows_are_left_out() -> None:
    rows = [
        Example(str(i), (), "a", "f:1", extra=extra)
        for i, extra in enumerate([{"half": "V"}, {"half": "T"}, {}, {"half": "V"}])
    ]
    assert named_halves(rows) == ("V", "T", "", "V")
    assert divided("facts T", ["g"] * 4, named_halves(rows), share=0.1, seed=0) == ((1,), (0, 3))


def test_without_groups_spread_rows_are_drawn_from_all() -> None:
    chosen = divided("spread over groups", [str(i) for i in range(1000)], share=0.2, seed=0).relearned
    assert len(set(chosen)) == 200
    assert np.mean(chosen) == pytest.approx(500, abs=60)


def test_a_row_that_holds_the_same_as_one_relearned_is_not_asked_for() -> None:
    assert without_copies(Division((0, 2), (1, 3, 4)), ["a", "b", "c", "a", "d"]) == Division((0, 2), (1, 4))


@pytest.mark.parametrize(
    ("choice", "groups", "said"),
    [
        ("whole groups", ["a", "a", "a"], "several groups"),
        ("whole groups", ["a", "b", "c"], "several groups"),
        ("half of each group", ["a", "b", "c"], "that are grouped"),
        ("facts T", ["a", "b"], "a column half that says T or V"),
        ("one row", ["a"], "1 rows are too few"),
        ("spread over groups", ["a"], "1 rows are too few"),
        ("spread over groups", [], "0 rows are too few"),
    ],
)
def test_what_cannot_be_chosen_is_said_in_one_sentence(choice: RowChoice, groups: list[str], said: str) -> None:
    with pytest.raises(NotShownError, match=said):
        divided(choice, groups, ["T"] * len(groups), share=0.1, seed=0)
