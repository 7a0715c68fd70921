"""What could tell a forgotten request from a retained one: every detector on trial, and where forgotten ones lie.

A detector scores the tokens of the model's own greedy answer and aggregates them into one number a request, or takes the
distance of a hidden state from retained ones. A score is turned so that higher means forgotten; aggregations see token scores
turned already, so the two highest are the two most suspicious tokens, whichever way the quantity points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from d2unlearn.analysis.distances import Mahalanobis, Neighbours
from d2unlearn.analysis.recorder import AnswerTraces
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
from d2unlearn.quantities import CentredEnergy, Entropy, LargestProbability, LogitMargin, LogSumExp, MaxLogit, Nll, Quantity
from d2unlearn.stats import Floats

PROMPT = "the prompt's end"
ANSWER = "the answer as it is generated"


@dataclass(frozen=True)
class TokenScore:
    """A number at each token: `factor` times a quantity, and whether it is higher or lower where content was forgotten."""

    label: str
    quantity: Quantity
    forgotten: Direction
    factor: float = 1.0

    def of(self, values: Floats) -> Floats:
        """From the quantity's values to the token scores, turned so that higher means forgotten."""
        return np.asarray(values * (self.factor if self.forgotten == "higher" else -self.factor))


@dataclass(frozen=True)
class Aggregation:
    """From the tokens of an answer to one number. `positions`: how many it looks at, None: all of them."""

    label: str
    score: Score | Callable[[Floats], float]
    positions: int | None = None


@dataclass(frozen=True)
class TokenDetector:
    """A token score, aggregated over the answer."""

    token_score: TokenScore
    aggregation: Aggregation

    @property
    def label(self) -> str:
        return f"{self.token_score.label}, {self.aggregation.label}"

    @property
    def reads(self) -> str:
        return PROMPT if self.aggregation.positions == 1 else ANSWER

    @property
    def forgotten(self) -> Direction:
        return self.token_score.forgotten

    @property
    def fitted(self) -> bool:
        return isinstance(self.aggregation.score, MaxOf | MaxOverLooks)

    @property
    def kept_bytes(self) -> int:
        score = self.aggregation.score
        return 8 * _numbers_in(score_to_json(score)) if self.fitted and isinstance(score, Score) else 0

    def fit(self, retained: AnswerTraces) -> TokenDetector:
        if not isinstance(self.aggregation.score, Score):
            return self
        score = self.aggregation.score.fit([tokens.tolist() for tokens in self._token_scores(retained)])
        return replace(self, aggregation=replace(self.aggregation, score=score))

    def scores(self, traces: AnswerTraces) -> Floats:
        answers, score = self._token_scores(traces), self.aggregation.score
        if isinstance(score, Score):
            return request_scores(score, [tokens.tolist() for tokens in answers])
        return np.array([score(tokens) for tokens in answers], dtype=np.float64)

    def _token_scores(self, traces: AnswerTraces) -> list[Floats]:
        return [self.token_score.of(tokens) for tokens in traces.values[self.token_score.quantity]]


@dataclass(frozen=True)
class StateDetector:
    """The distance of a hidden state from retained ones: where the prompt ends, or the mean over the answer."""

    name: str
    place: Literal["prompt", "answer"]
    distance: Mahalanobis | Neighbours
    forgotten: Direction = "higher"
    fitted: bool = True

    @property
    def label(self) -> str:
        return f"{self.name}, " + (f"hidden state at {PROMPT}" if self.place == "prompt" else "mean hidden state of the answer")

    @property
    def reads(self) -> str:
        return PROMPT if self.place == "prompt" else ANSWER

    @property
    def kept_bytes(self) -> int:
        return self.distance.kept_bytes

    def fit(self, retained: AnswerTraces) -> StateDetector:
        return replace(self, distance=self.distance.fit(self._states(retained)))

    def scores(self, traces: AnswerTraces) -> Floats:
        return self.distance.of(self._states(traces))

    def _states(self, traces: AnswerTraces) -> Floats:
        return traces.prompt_states if self.place == "prompt" else traces.answer_states


Detector = TokenDetector | StateDetector
"""One number a request.

`label`: what it is, in words. `reads`: what of a request has to be there before it can be computed. `forgotten`: where its
values lie for forgotten requests. `fitted`: it cannot be computed without retained examples; `fit` is the detector with what it
standardises or measures by estimated from them, `kept_bytes` what of it would be kept with a gate. `scores`: [N], higher for
forgotten requests, NaN where there is no number.
"""


def signed_values(detector: Detector, traces: AnswerTraces) -> Floats:
    """The scores in the detector's own sign, [N]."""
    return detector.scores(traces) if detector.forgotten == "higher" else -detector.scores(traces)


def _mean(tokens: Floats) -> float:
    return float(tokens.mean())


def _exponential_of_mean(tokens: Floats) -> float:
    return math.exp(min(_mean(tokens), 700.0))


def _highest_fifth(tokens: Floats) -> float:
    """Min-K% at 20%, of an NLL."""
    return min_k(tokens, 0.2)


def _numbers_in(value: object) -> int:
    if isinstance(value, Mapping):
        return sum(_numbers_in(inside) for inside in value.values())
    if isinstance(value, list):
        return sum(_numbers_in(inside) for inside in value)
    return int(isinstance(value, float))


TOKEN_SCORES: Mapping[str, TokenScore] = {
    "energy": TokenScore("energy", LogSumExp(), "higher", -1.0),
    "energy-t0.5": TokenScore("energy at temperature 0.5", LogSumExp(0.5), "higher", -0.5),
    "energy-t2": TokenScore("energy at temperature 2", LogSumExp(2.0), "higher", -2.0),
    "energy-t5": TokenScore("energy at temperature 5", LogSumExp(5.0), "higher", -5.0),
    "centred-energy": TokenScore("centred energy", CentredEnergy(), "higher"),
    "max-logit": TokenScore("largest logit", MaxLogit(), "lower"),
    "logit-margin": TokenScore("logit margin", LogitMargin(), "lower"),
    "max-probability": TokenScore("largest probability", LargestProbability(), "lower"),
    "entropy": TokenScore("entropy", Entropy(), "higher"),
    "nll": TokenScore("NLL of its own answer", Nll(), "higher"),
}
"""What is read at a token. The first is the paper's index; the temperatures are its own parameter."""

AGGREGATIONS: Mapping[str, Aggregation] = {
    "prompt": Aggregation("at the prompt's end", FirstTokens(1), 1),
    "mean": Aggregation("mean of the answer", _mean),
    "highest-2": Aggregation("two most suspicious tokens", Highest(2)),
}
"""How every token score is aggregated, so that none is at a disadvantage by it."""

GATE_AGGREGATIONS: Mapping[str, Aggregation] = {
    name: Aggregation(f"the gate's {name}", score, score.count if isinstance(score, FirstTokens) else None)
    for name, score in CANDIDATES.items()
    if name not in AGGREGATIONS
}
"""The gate's other scores, of energies alone."""

_NLL = TOKEN_SCORES["nll"]
DETECTORS: Mapping[str, Detector] = {
    **{
        f"{name}/{by}": TokenDetector(token_score, aggregation)
        for name, token_score in TOKEN_SCORES.items()
        for by, aggregation in ({**AGGREGATIONS, **GATE_AGGREGATIONS} if name == "energy" else AGGREGATIONS).items()
    },
    "nll/min-k-20": TokenDetector(_NLL, Aggregation("least likely 20% (Min-K%)", _highest_fifth)),
    "nll/min-k-40": TokenDetector(_NLL, Aggregation("least likely 40% (Min-K%)", min_k)),
    "perplexity": TokenDetector(replace(_NLL, label="perplexity"), Aggregation("of its own answer", _exponential_of_mean)),
    "mahalanobis/prompt": StateDetector("Mahalanobis distance", "prompt", Mahalanobis()),
    "mahalanobis/answer": StateDetector("Mahalanobis distance", "answer", Mahalanobis()),
    "neighbours/prompt": StateDetector("distance to the 10th neighbour", "prompt", Neighbours()),
    "neighbours/answer": StateDetector("distance to the 10th neighbour", "answer", Neighbours()),
}
"""Every detector on trial: what it reads of a request and where forgotten requests lie."""

BASE_DETECTOR = f"energy/{DEFAULT}"
"""What the others are compared with where no gate says which score it uses."""

QUANTITIES: tuple[Quantity, ...] = tuple(token_score.quantity for token_score in TOKEN_SCORES.values())
"""All that one generation pass has to read at each token."""
