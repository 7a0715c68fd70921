"""What every attack gives back: a number for each row, under each of its settings. Pure records."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from d2unlearn.schema import Example, Tokens

Setting = str | float | int
Measure = Literal["answer_probability", "told", "refused", "missed", "picked", "score"]
"""What a reading's numbers are, one a row.

answer_probability  geometric mean of the answer's token probabilities, 0 to 1
told                1 where what was generated gives the truth away (`metrics.text.leaked`), else 0, or the chance of it
refused             1 where the gate refused, else 0
missed              1 where a forgotten question was answered and not refused, else 0
picked              1 where the true answer was picked among wrong ones, else 0
score               a number that tells rows of several sets apart by a rank statistic (membership scores, energies); no share
"""

NO_REFUSAL_BEFORE = "it asks again after a refusal, and the answer before was none"
"""Why a row is not asked in a wording that is none without a refusal."""


class NotShownError(Exception):
    """This attack cannot be made on this model or these rows; the message is one sentence, the reason."""


@dataclass(frozen=True)
class AskedRows:
    """Rows that an attack asks for, rendered. `name`: of the set; `groups`: of each row, its own id where it has none."""

    name: str
    tokens: tuple[Tokens, ...]
    groups: tuple[str, ...]

    def without(self, example_ids: Collection[str]) -> AskedRows:
        """The rows of other ids."""
        kept = [index for index, row in enumerate(self.tokens) if row.example_id not in example_ids]
        return AskedRows(self.name, tuple(self.tokens[i] for i in kept), tuple(self.groups[i] for i in kept))


@dataclass(frozen=True)
class Reading:
    """What one setting of an attack shows of the rows of one set.

    setting: what tells it from the attack's other settings, in words and numbers ({"learning rate": 0.001, "steps": 80}).
    row_ids, groups, values: of each row; a value is NaN where the row was not asked, and `not_asked` counts the reasons.
    texts: what was said, where something was; empty, or one a row.
    """

    setting: Mapping[str, Setting]
    measure: Measure
    rows: str
    row_ids: tuple[str, ...]
    groups: tuple[str, ...]
    values: tuple[float, ...]
    texts: tuple[str, ...] = ()
    not_asked: Mapping[str, int] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        """Of the rows that were asked; NaN for none."""
        scored = [value for value in self.values if not math.isnan(value)]
        return sum(scored) / len(scored) if scored else math.nan


def group_labels(rows: Sequence[Example]) -> tuple[str, ...]:
    """Each row's group; its own id where it has none."""
    return tuple(row.example_id if row.group is None else row.group for row in rows)


def reading_of(
    asked: AskedRows, setting: Mapping[str, Setting], measure: Measure, values: Sequence[float], texts: Sequence[str] = ()
) -> Reading:
    """One value a row, in their order."""
    ids = tuple(row.example_id for row in asked.tokens)
    if len(values) != len(ids):
        raise ValueError(f"{len(values)} values for {len(ids)} rows")
    return Reading(dict(setting), measure, asked.name, ids, asked.groups, tuple(map(float, values)), tuple(texts))
