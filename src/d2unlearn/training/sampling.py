"""Which rows make up step s of epoch e: a function of (seed, epoch, index) and of nothing else.

An epoch visits every forget row, filled up to a whole number of effective batches by going on in the same order; each visit
has one partner from the retained rows, taken from a shuffled pass that goes on across epochs. Neither depends on the number
of processes or on how an effective batch is cut, so 8 x 1, 2 x 4 and two processes see the same rows in the same steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from d2unlearn.schema import Role


class Pair(NamedTuple):
    """Positions in the forget and the retained rows that are trained on together."""

    forget: int
    retain: int

    def row_of(self, role: Role) -> int:
        """The position among the rows of a role; other answers are counted like the rows they belong to."""
        return self.forget if role in ("forget", "alternate") else self.retain


class PairPlan(Dataset[Pair]):
    """The whole training run as an indexable plan: item `epoch * len(self) + index` is that visit's pair.

    Stateless, so that workers, ranks and resumed runs agree. `effective_batch` counts rows over all processes and
    accumulation steps.
    """

    def __init__(self, n_forget: int, n_retain: int, *, effective_batch: int, seed: int) -> None:
        self.n_forget = n_forget
        self.n_retain = n_retain
        self.seed = seed
        self.effective_batch = effective_batch
        self._length = math.ceil(n_forget / effective_batch) * effective_batch

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, visit: int) -> Pair:
        epoch, index = divmod(visit, self._length)
        retain_pass, retain_index = divmod(visit, self.n_retain)
        return Pair(
            forget=int(_shuffled(self.seed, 0, epoch, self.n_forget)[index % self.n_forget]),
            retain=int(_shuffled(self.seed, 1, retain_pass, self.n_retain)[retain_index]),
        )


class EpochSampler(Sampler[int]):
    """Yields the visits of one epoch in order. The trainer sets the epoch at its beginning."""

    def __init__(self, plan: PairPlan) -> None:
        self.plan = plan
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[int]:
        start = self.epoch * len(self.plan)
        return iter(range(start, start + len(self.plan)))


@lru_cache(maxsize=8)
def _shuffled(seed: int, stream: int, epoch: int, n: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, stream, epoch]).permutation(n)
