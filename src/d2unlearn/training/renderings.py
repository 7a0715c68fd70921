"""Forget rows asked in other words: what is gone in one wording alone is not gone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from d2unlearn.schema import Example
from d2unlearn.wordings.table import choosing_wordings
from d2unlearn.wordings.wording import NotAsked, Wording, reworded

FEWEST, MOST = 16, 32
"""Few rows are asked in more wordings each, until there are so many renderings; of many rows some are asked."""


def asking_wordings() -> list[Wording]:
    """Those of the table to choose on that ask in one turn, need nothing beside the row and want its own answer."""
    return [wording for wording in choosing_wordings() if wording.target == "answer" and _alone(wording)]


def reworded_rows(rows: Sequence[Example], *, seed: int = 0) -> list[Example]:
    """Rows in `asking_wordings`, taken in turn, with their own answers; rows of plain text ask nothing and are left out.

    At most `MOST` of them, spread over the rows; of fewer than `FEWEST` rows each is asked in more wordings. The same rows and
    seed give the same renderings.
    """
    wordings, asked = asking_wordings(), [row for row in rows if row.question]
    if not asked:
        return []
    count = min(max(FEWEST, len(asked)), MOST, len(asked) * len(wordings))
    made = []
    for number in range(count):
        row = asked[number % len(asked)] if count >= len(asked) else asked[number * len(asked) // count]
        wording = wordings[(number % len(asked) + number // len(asked)) % len(wordings)]
        found = reworded(wording, row, seed=seed)
        if not isinstance(found, NotAsked):
            made.append(replace(row, example_id=f"{row.example_id}/{wording.name}", prompt=found.stages[-1]))
    return made


def _alone(wording: Wording) -> bool:
    """Whether it asks in one turn, without pairs of other rows and without giving a part of the answer away."""
    roles, text = [step.role for step in wording.steps], wording.text
    paired = wording.pairs("benign") or wording.pairs("forgotten")
    return roles.count("user") == 1 and "assistant" not in roles and not paired and "{answer}" not in text
