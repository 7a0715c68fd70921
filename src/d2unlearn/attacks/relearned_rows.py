"""Which of the forgotten rows are relearned, and which are asked for: never the same. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from d2unlearn.attacks.reading import NotShownError
from d2unlearn.data.years import ASKED_HALF, HALF_COLUMN, RELEARNED_HALF
from d2unlearn.schema import Example

RowChoice = Literal["whole groups", "spread over groups", "one row", "half of each group", "facts T", "retained rows"]
"""Which rows are relearned. All others are asked for, unless said otherwise.

whole groups        a few groups (authors, documents) in full, drawn, until the share is reached
spread over groups  the share, drawn so that all groups give as many, give or take one
one row             one, drawn
half of each group  half of the rows of each, drawn; a group's odd row is asked for
facts T             rows whose column `half` says T; those that say V are asked for
retained rows       none of them: other rows are trained on, and all are asked for

Source: facts T and V after Deeb and Roger (2410.08827): halves without a fact in common, so that what is told of V was there.
"""


class Division(NamedTuple):
    """Indices of rows, in their order. relearned: empty for `retained rows`."""

    relearned: tuple[int, ...]
    asked: tuple[int, ...]


def named_halves(rows: Sequence[Example]) -> tuple[str, ...]:
    """What the column `half` says of each row; empty where there is none."""
    return tuple(str(row.extra.get(HALF_COLUMN, "")) for row in rows)


def divided(choice: RowChoice, groups: Sequence[str], halves: Sequence[str] = (), *, share: float, seed: int) -> Division:
    """The rows as one choice divides them. groups, halves: of each row; a row without others of its group is its own.

    `share`: of the rows, for the first two choices; at least one row. Raises `NotShownError` where nothing would be relearned
    or nothing asked for.
    """
    everything = tuple(range(len(groups)))
    if choice == "retained rows":
        return Division((), everything)
    if choice == "facts T":
        return _by_halves(halves)
    rng = np.random.default_rng(seed)
    count = max(1, round(share * len(groups)))
    if choice == "whole groups":
        taken = _whole_groups(groups, count, rng)
    elif choice == "half of each group":
        taken = _half_of_each(groups, rng)
    else:
        taken = _in_turns(groups, 1 if choice == "one row" else count, rng)
    chosen = set(taken)
    asked = tuple(index for index in everything if index not in chosen)
    if not taken or not asked:
        raise NotShownError(f"{len(groups)} rows are too few to relearn some and to ask for others")
    return Division(tuple(sorted(taken)), asked)


def without_copies(division: Division, contents: Sequence[Hashable]) -> Division:
    """The division without asked rows that hold the same as one of those relearned. contents: of each row."""
    known = {contents[index] for index in division.relearned}
    return Division(division.relearned, tuple(index for index in division.asked if contents[index] not in known))


def _by_halves(halves: Sequence[str]) -> Division:
    found = [tuple(i for i, half in enumerate(halves) if half == side) for side in (RELEARNED_HALF, ASKED_HALF)]
    if not all(found):
        raise NotShownError(f"it needs a column {HALF_COLUMN} that says {RELEARNED_HALF} or {ASKED_HALF} of the forget rows")
    return Division(*found)


def _whole_groups(groups: Sequence[str], count: int, rng: np.random.Generator) -> list[int]:
    """All rows of as few drawn groups as hold `count` rows."""
    names, taken = list(dict.fromkeys(groups)), list[int]()
    if len(names) in (1, len(groups)):
        raise NotShownError("it needs forget rows of several groups (a column group or author, or --group-size)")
    for place in rng.permutation(len(names)).tolist():
        if len(taken) < count:
            taken += [index for index, group in enumerate(groups) if group == names[place]]
    return taken


def _half_of_each(groups: Sequence[str], rng: np.random.Generator) -> list[int]:
    sizes, given, taken = Counter(groups), Counter[str](), list[int]()
    if max(sizes.values(), default=0) < 2:
        raise NotShownError("it needs forget rows that are grouped (a column group or author, or --group-size)")
    for index in rng.permutation(len(groups)).tolist():
        if given[groups[index]] < sizes[groups[index]] // 2:
            given[groups[index]] += 1
            taken.append(index)
    return taken


def _in_turns(groups: Sequence[str], count: int, rng: np.random.Generator) -> list[int]:
    """So many rows, one of each group before a second of any."""
    turns, drawn = Counter[str](), list[tuple[int, int]]()
    for index in rng.permutation(len(groups)).tolist():
        turns[groups[index]] += 1
        drawn.append((turns[groups[index]], index))
    return [index for _, index in sorted(drawn, key=lambda pair: pair[0])[:count]]
