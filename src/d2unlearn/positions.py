"""Which positions of a batch a method looks at. The right ones are `Predicting`; the others are what other code bases do.

Each is a frozen dataclass: two equal ones are the same set, and its `repr` is part of the cache key of a stored reference.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from d2unlearn.likelihood import IGNORE, predicting_mask


class Positions(ABC):
    """A choice of positions. Subclasses are frozen dataclasses."""

    has_targets: ClassVar[bool] = False
    """Whether an answer token follows every position, so that its likelihood can be asked for."""
    counts_padding: ClassVar[bool] = False
    """Whether padding belongs to it, so that a row has more positions in a wider batch."""

    @abstractmethod
    def mask(self, labels: Tensor) -> Tensor:
        """True where looked at. labels: [B, T]. Returns bool [B, T]."""


@dataclass(frozen=True)
class Predicting(Positions):
    """The positions whose next token is an answer token, without the first `skip` of each row."""

    has_targets: ClassVar[bool] = True
    skip: int = 0

    def mask(self, labels: Tensor) -> Tensor:
        mask = predicting_mask(labels)
        return mask & (mask.cumsum(dim=1) > self.skip) if self.skip else mask


@dataclass(frozen=True)
class Labelled(Positions):
    """The answer tokens' own positions, one to the right of those that predict them."""

    def mask(self, labels: Tensor) -> Tensor:
        return labels != IGNORE


@dataclass(frozen=True)
class Every(Positions):
    """Every position of the batch: prompt, answer and padding alike; with `but_last` the last column is left out."""

    counts_padding: ClassVar[bool] = True
    but_last: bool = False

    def mask(self, labels: Tensor) -> Tensor:
        mask = torch.ones_like(labels, dtype=torch.bool)
        if self.but_last:
            mask[:, -1] = False
        return mask
