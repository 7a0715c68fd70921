"""What could tell a forgotten request from a retained one: every index on trial, how it is read, and where forgotten ones lie.

An index reads a number at each position of the model's own greedy answer and pools them into one number a request, or takes the
distance of a hidden state from retained ones. `evidence` is that number turned so that higher means forgotten; pools see it
turned already, so the two highest are the two most suspicious tokens, whichever way the reading points.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from d2unlearn.analysis.distances import Distance, Mahalanobis, Neighbours
from d2unlearn.analysis.recorder import Reads
from d2unlearn.analysis.records import Direction
from d2unlearn.gate.score import (
    CANDIDATES,
    DEFAULT,
    FirstTokens,
    Highest,
    MaxOf,
    MaxOverLooks,
    Score,
    request_scores,
    score_to_json,
)
from d2unlearn.metrics.membership import min_k
from d2unlearn.quantities import (
    CentredEnergy,
    Entropy,
    LargestProbability,
    LogitMargin,
    LogSumExp,
    MaxLogit,
    Nll,
    Quantity,
)

Floats = NDArray[np.float64]
PROMPT = "the prompt's end"
ANSWER = "the answer as it is generated"
PLACES = {"prompt": f"hidden state at {PROMPT}", "answer": "mean hidden state of the answer"}


@dataclass(frozen=True)
class Reading:
    """A number at each position: `factor` times a quantity, and whether it is higher or lower where content was forgotten."""

    label: str
    quantity: Quantity
    forgotten: Direction
    factor: float = 1.0

    def evidence(self, values: Floats) -> Floats:
        """From the quantity's values to the reading's, turned so that higher means forgotten."""
        return np.asarray(values * (self.factor if self.forgotten == "higher" else -self.factor))


@dataclass(frozen=True)
class Pool:
    """From the positions of an answer to one number. `positions`: how many it looks at, None: all of them."""

    label: str
    score: Score | Callable[[Floats], float]
    positions: int | None = None


class Index(ABC):
    """One number a request. Subclasses are frozen dataclasses."""

    @property
    @abstractmethod
    def label(self) -> str:
        """What it is, in words."""

    @property
    @abstractmethod
    def reads(self) -> str:
        """What of a request has to be there before it can be computed."""

    @property
    @abstractmethod
    def forgotten(self) -> Direction:
        """Where its values lie for forgotten requests."""

    @property
    @abstractmethod
    def fitted(self) -> bool:
        """Whether it cannot be computed without retained examples."""

    @abstractmethod
    def fit(self, retained: Reads) -> Index:
        """With whatever it standardises or measures by estimated from retained requests."""

    @abstractmethod
    def evidence(self, reads: Reads) -> Floats:
        """One number a request, [N], higher for forgotten ones. NaN where it is not a number."""

    @property
    @abstractmethod
    def kept_bytes(self) -> int:
        """What was fitted, as it would be kept with a gate."""

    def values(self, reads: Reads) -> Floats:
        """The evidence in the index's own sign, [N]."""
        found = self.evidence(reads)
        return found if self.forgotten == "higher" else -found


@dataclass(frozen=True)
class AnswerIndex(Index):
    """A reading, pooled over the answer's positions."""

    reading: Reading
    pool: Pool

    @property
    def label(self) -> str:
        return f"{self.reading.label}, {self.pool.label}"

    @property
    def reads(self) -> str:
        return PROMPT if self.pool.positions == 1 else ANSWER

    @property
    def forgotten(self) -> Direction:
        return self.reading.forgotten

    @property
    def fitted(self) -> bool:
        return isinstance(self.pool.score, MaxOf | MaxOverLooks)

    @property
    def kept_bytes(self) -> int:
        return 8 * _numbers_in(score_to_json(self.pool.score)) if self.fitted and isinstance(self.pool.score, Score) else 0

    def fit(self, retained: Reads) -> AnswerIndex:
        if not isinstance(self.pool.score, Score):
            return self
        return replace(self, pool=replace(self.pool, score=self.pool.score.fit([row.tolist() for row in self._rows(retained)])))

    def evidence(self, reads: Reads) -> Floats:
        rows = self._rows(reads)
        if isinstance(self.pool.score, Score):
            return request_scores(self.pool.score, [row.tolist() for row in rows])
        return np.array([self.pool.score(row) for row in rows], dtype=np.float64)

    def _rows(self, reads: Reads) -> list[Floats]:
        return [self.reading.evidence(row) for row in reads.values[self.reading.quantity]]


@dataclass(frozen=True)
class StateIndex(Index):
    """The distance of a hidden state from retained ones: where the prompt ends, or the mean over the answer."""

    name: str
    place: Literal["prompt", "answer"]
    distance: Distance

    @property
    def label(self) -> str:
        return f"{self.name}, {PLACES[self.place]}"

    @property
    def reads(self) -> str:
        return PROMPT if self.place == "prompt" else ANSWER

    @property
    def forgotten(self) -> Direction:
        return "higher"

    @property
    def fitted(self) -> bool:
        return True

    @property
    def kept_bytes(self) -> int:
        return self.distance.kept_bytes

    def fit(self, retained: Reads) -> StateIndex:
        return replace(self, distance=self.distance.fit(self._states(retained)))

    def evidence(self, reads: Reads) -> Floats:
        return self.distance.of(self._states(reads))

    def _states(self, reads: Reads) -> Floats:
        return reads.prompt_states if self.place == "prompt" else reads.answer_states


def mean(row: Floats) -> float:
    return float(row.mean())


def exponential_of_mean(row: Floats) -> float:
    return math.exp(min(mean(row), 700.0))


def highest_fifth(row: Floats) -> float:
    """Min-K% at 20%, of an NLL."""
    return min_k(row, 0.2)


def _numbers_in(value: object) -> int:
    if isinstance(value, Mapping):
        return sum(_numbers_in(each) for each in value.values())
    if isinstance(value, list):
        return sum(_numbers_in(each) for each in value)
    return int(isinstance(value, float))


READINGS: Mapping[str, Reading] = {
    "energy": Reading("energy", LogSumExp(), "higher", -1.0),
    "energy-t0.5": Reading("energy at temperature 0.5", LogSumExp(0.5), "higher", -0.5),
    "energy-t2": Reading("energy at temperature 2", LogSumExp(2.0), "higher", -2.0),
    "energy-t5": Reading("energy at temperature 5", LogSumExp(5.0), "higher", -5.0),
    "centred-energy": Reading("centred energy", CentredEnergy(), "higher"),
    "max-logit": Reading("largest logit", MaxLogit(), "lower"),
    "logit-margin": Reading("logit margin", LogitMargin(), "lower"),
    "max-probability": Reading("largest probability", LargestProbability(), "lower"),
    "entropy": Reading("entropy", Entropy(), "higher"),
    "nll": Reading("NLL of its own answer", Nll(), "higher"),
}
"""What is read at a position. The first is the paper's index; the temperatures are its own parameter."""

POOLS: Mapping[str, Pool] = {
    "prompt": Pool("at the prompt's end", FirstTokens(1), 1),
    "mean": Pool("mean of the answer", mean),
    "highest-2": Pool("two most suspicious tokens", Highest(2)),
}
"""How every reading is pooled, so that none is at a disadvantage by its pool."""

GATE_POOLS: Mapping[str, Pool] = {
    name: Pool(f"the gate's {name}", score, score.count if isinstance(score, FirstTokens) else None)
    for name, score in CANDIDATES.items()
    if name not in POOLS
}
"""The gate's other scores."""

INDICES: Mapping[str, Index] = {
    **{
        f"{reading}/{pool}": AnswerIndex(READINGS[reading], each)
        for reading, pools in (
            ("energy", {**POOLS, **GATE_POOLS}),
            ("energy-t0.5", POOLS),
            ("energy-t2", POOLS),
            ("energy-t5", POOLS),
            ("centred-energy", POOLS),
            ("max-logit", POOLS),
            ("logit-margin", POOLS),
            ("max-probability", POOLS),
            ("entropy", POOLS),
            ("nll", POOLS),
        )
        for pool, each in pools.items()
    },
    "nll/min-k-20": AnswerIndex(READINGS["nll"], Pool("least likely 20% (Min-K%)", highest_fifth)),
    "nll/min-k-40": AnswerIndex(READINGS["nll"], Pool("least likely 40% (Min-K%)", min_k)),
    "perplexity": AnswerIndex(replace(READINGS["nll"], label="perplexity"), Pool("of its own answer", exponential_of_mean)),
    "mahalanobis/prompt": StateIndex("Mahalanobis distance", "prompt", Mahalanobis()),
    "mahalanobis/answer": StateIndex("Mahalanobis distance", "answer", Mahalanobis()),
    "neighbours/prompt": StateIndex("distance to the 10th neighbour", "prompt", Neighbours()),
    "neighbours/answer": StateIndex("distance to the 10th neighbour", "answer", Neighbours()),
}
"""Every index on trial: what it reads of a request and where forgotten requests lie."""

REFERENCE = f"energy/{DEFAULT}"
"""What the others are compared with where no gate says which score it uses."""

QUANTITIES: tuple[Quantity, ...] = tuple(reading.quantity for reading in READINGS.values())
"""All that one generation pass has to read at each position."""
