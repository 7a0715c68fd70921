"""Which retained rows are nearest to what is to be forgotten: neighbours that have to stay, where a person names none."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

NEAR_SHARE = 0.25
"""Share of the rows looked at that count as near, and never fewer than `AT_LEAST_NEAR` where there are so many."""
AT_LEAST_NEAR = 20


def neighbour_count(rows: int) -> int:
    """How many of so many retained rows count as near."""
    return min(rows, max(AT_LEAST_NEAR, math.ceil(NEAR_SHARE * rows)))


def nearest(forget: Sequence[Tensor], retain: Sequence[Tensor], count: int) -> list[int]:
    """Indices of the `count` retained rows nearest to any forget row, the nearest first.

    Each row: a model's last hidden states at its answer positions, [n, H], of which the mean stands for it. Near is a large
    cosine to the nearest forget row, after the mean over all retained rows was taken out: what all rows share tells nothing.
    None where a side is empty.
    """
    if not forget or not retain:
        return []
    gone, stay = (torch.stack([states.float().mean(dim=0) for states in side]) for side in (forget, retain))
    centre = stay.mean(dim=0)
    gone, stay = (torch.nn.functional.normalize(side - centre, dim=1) for side in (gone, stay))
    closeness = (stay @ gone.T).amax(dim=1)
    return closeness.argsort(descending=True, stable=True)[:count].tolist()
