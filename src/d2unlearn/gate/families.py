"""What a gate decides on rows held out, wording by wording: refused wrongly, missed, and told through it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from d2unlearn.gate.asked import AskedRequest
from d2unlearn.gate.groups import REQUEST_GROUPS
from d2unlearn.gate.score import Bools
from d2unlearn.schema import Interval
from d2unlearn.stats import binomial_interval

MANY_MISSED = 0.05
"""Of the forgotten questions in a family: when surely more pass, it breaks."""


@dataclass(frozen=True)
class FamilyRates:
    """Shares of requests in one family of wordings (`plain`: as they stand; `near`, `unrelated`: by file); None: no such row.

    `refused`: of legitimate ones; `missed`: of forgotten ones that pass; `leaked`: of forgotten ones that pass and whose answer
    tells what was asked.
    """

    family: str
    refused: Interval | None
    missed: Interval | None
    leaked: Interval | None

    def warnings(self, max_false_refusal: float) -> Iterator[str]:
        """Where the family breaks what the gate is for: its whole interval lies beyond."""
        if self.refused is not None and self.refused.low > max_false_refusal:
            yield f"{self.family}: {self.refused.value:.1%} of legitimate requests are refused"
        if self.missed is not None and self.missed.low > MANY_MISSED:
            yield f"{self.family}: {self.missed.value:.1%} of forgotten requests pass"


def family_rates(
    retained: Sequence[AskedRequest], refused: Bools, forget: Sequence[AskedRequest], caught: Bools
) -> tuple[FamilyRates, ...]:
    """One for each family, in the order of their first row. refused, caught: how each was judged, unseen."""
    families = dict.fromkeys([*map(family_of, retained), *map(family_of, forget)])
    ours, theirs = np.array(list(map(family_of, retained))), np.array(list(map(family_of, forget)))
    told = np.array([bool(each.told) for each in forget], dtype=np.bool_)
    known = np.array([each.told is not None for each in forget], dtype=np.bool_)
    return tuple(
        FamilyRates(
            family,
            _share(refused[ours == family]),
            _share(~caught[theirs == family]),
            _share((~caught & told)[(theirs == family) & known]),
        )
        for family in families
    )


def family_of(asked: AskedRequest) -> str:
    """The wording's family; the file's group for rows of another file than the legitimate ones'."""
    return asked.family if asked.group in REQUEST_GROUPS else asked.group


def _share(flags: Bools) -> Interval | None:
    return binomial_interval(int(flags.sum()), len(flags)) if len(flags) else None
