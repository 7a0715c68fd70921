"""How much of a change of the logits is their level alone. Pure functions of numbers, without torch.

    energy = centred energy - mean logit        E(z) = E_c(z) - mean(z), at T = 1 (`d2unlearn.energy`)

A constant added to every logit moves the mean and with it the energy, but no probability: such a rise of the energy is no
forgetting. What the distribution says is in the centred energy and in the entropy, which a constant leaves as they are.
"""

from __future__ import annotations

import math
from typing import NamedTuple

SMALLEST_CHANGE = 0.1
"""nats. Where mean logit and centred energy both move less, a share of the change would be a share of noise."""
MOSTLY_LEVEL = 0.5
"""Share above which a warning is due: most of what moved says nothing of what is known."""
NO_CHANGE = f"mean logit and centred energy both moved less than {SMALLEST_CHANGE} nats"
NOT_MEASURED = "mean logit and centred energy were not both measured before and after"


class LogitShape(NamedTuple):
    """Three means over positions, in nats: of the mean logit, of the centred energy, of the entropy (0 to log V)."""

    mean_logit: float
    centred_energy: float
    entropy: float

    @property
    def energy(self) -> float:
        """The free energy, `centred_energy - mean_logit`."""
        return self.centred_energy - self.mean_logit


class LevelShift(NamedTuple):
    """`share`: from 0 (the distribution alone changed) to 1 (the level alone); NaN with the `reason` why."""

    share: float
    reason: str = ""

    @property
    def mostly_level(self) -> bool:
        """Whether more than half of the change is the level's."""
        return self.share > MOSTLY_LEVEL


def level_shift(before: LogitShape, after: LogitShape) -> LevelShift:
    """|change of mean logit| / (|change of mean logit| + |change of centred energy|), of means over the same positions.

    NaN, with the reason, where both move less than `SMALLEST_CHANGE` and where one was not measured.
    """
    level = abs(after.mean_logit - before.mean_logit)
    shape = abs(after.centred_energy - before.centred_energy)
    if not math.isfinite(level + shape):
        return LevelShift(math.nan, NOT_MEASURED)
    if max(level, shape) < SMALLEST_CHANGE:
        return LevelShift(math.nan, NO_CHANGE)
    return LevelShift(level / (level + shape))


def level_warning(before: LogitShape, after: LogitShape, where: str) -> str | None:
    """A sentence when the level makes up more than half of the change, else None. where: of which positions, in words."""
    shift = level_shift(before, after)
    if not shift.mostly_level:
        return None
    return (
        f"{shift.share:.0%} of the change {where} is the level of the logits (mean logit {before.mean_logit:.1f} to "
        f"{after.mean_logit:.1f}, centred energy {before.centred_energy:.1f} to {after.centred_energy:.1f}): the method moved "
        "the level and not the knowledge"
    )
