"""What a user would notice of answers that should have stayed: pure functions of one set's numbers, before and after.

Both leave the answer's end token out. A model that learns to end where the answers of its training rows end raises their
probability, and one that ends elsewhere loses all of its extraction strength: neither is knowledge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

KNOWS = 0.5
"""Share of an answer's tokens that a model has greedily right from which it knows the answer; common words alone give less."""


class Stayed(NamedTuple):
    """A set of answers that should have stayed, of those that the original knows: what of them is as it was.

    right, right_before: share of the answers' tokens that are the most likely one (exact memorisation), now and of the
    original. `kl`: mean KL(original || now) at the same positions, nats; None where the original was not at hand.
    """

    right: float
    right_before: float
    kl: float | None = None

    @property
    def share_right(self) -> float:
        """`right` over what the original had right, at most 1; NaN where the original had nothing right."""
        share = self.right / self.right_before if self.right_before > 0 else math.nan
        return 1.0 if share > 1 else share

    @property
    def shares(self) -> tuple[float, ...]:
        """`share_right`, where the original had something right, and exp(-KL).

        The second is the geometric mean of the factors by which the probabilities of what the original would say have changed.
        """
        right = (self.share_right,) if self.right_before > 0 else ()
        return right if self.kl is None else (*right, math.exp(-self.kl))


def knows(right: float) -> bool:
    """Whether a model knows an answer, by the share of its tokens that are the most likely one, the end token left out.

    Of an answer that the original does not know nothing can be lost, however much a model changes there. NaN: it does not.
    """
    return right >= KNOWS


def kept(sets: Sequence[Stayed]) -> float:
    """The least of the sets' shares, 0 to 1: what stayed on average does not make up for what went.

    NaN where a share is none, and where there is nothing to compare.
    """
    shares = [share for stayed in sets for share in stayed.shares]
    return math.nan if not shares or any(map(math.isnan, shares)) else min(shares)
