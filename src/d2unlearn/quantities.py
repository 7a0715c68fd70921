"""The numbers per answer position that a method or metric may ask for.

A method declares quantities; the head (`head.py`) computes those and nothing else, chunk by chunk, so that the [N, V] logits
never exist at once. Each is a frozen dataclass: two equal ones are the same quantity, and its `repr` is part of the cache key.
A new quantity is one class with `of`; its gradient comes from autograd on the chunk (`Nll` and `LogSumExp`, which every
method uses, have a closed form in `head.py`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from d2unlearn.energy import LogSumExpParts, centred_energy, logsumexp, logsumexp_parts, selected_logsumexp
from d2unlearn.errors import ConfigError


@dataclass(frozen=True)
class HiddenState:
    """A hidden state at each answer position, [N, H]: the head's own input, or the output of the submodule named.

    `module` is a name as in `model.named_modules()`, e.g. `model.layers.7`; empty means the last hidden states.
    """

    module: str = ""


class Chunk:
    """The logits of n answer positions in float32 (float64 stays), with the tokens that they should predict.

    logits: [n, V]; targets: [n] int64, `IGNORE` where a method asks for positions that predict no answer token;
    reference_logits: [n, V], there when a quantity asks for them.
    """

    def __init__(self, logits: Tensor, targets: Tensor, reference_logits: Tensor | None = None) -> None:
        self.logits = logits
        self.targets = targets
        self._reference_logits = reference_logits

    @cached_property
    def parts(self) -> LogSumExpParts:
        """logsumexp at temperature 1 in its two parts, [n] each: shared by the quantities of one chunk."""
        return logsumexp_parts(self.logits)

    @property
    def logsumexp(self) -> Tensor:
        """logsumexp at temperature 1, [n]."""
        return self.parts.largest + self.parts.excess

    @cached_property
    def log_probabilities(self) -> Tensor:
        """log softmax(z), [n, V]: shared by the quantities of one chunk that average over the vocabulary."""
        return torch.log_softmax(self.logits, dim=-1)

    @cached_property
    def entropy(self) -> Tensor:
        """Entropy of softmax(z), nats, [n]: the mean of -log p under the model."""
        return -(self.log_probabilities.exp() * self.log_probabilities).sum(dim=-1)

    @property
    def target_logits(self) -> Tensor:
        """The logit of each target, [n]."""
        return self.logits.gather(1, self.targets.unsqueeze(1)).squeeze(1)

    @property
    def reference_logits(self) -> Tensor:
        """The frozen reference's logits at the same positions, [n, V]. Raises `ConfigError` when they were not given."""
        if self._reference_logits is None:
            raise ConfigError(["a quantity reads the reference's logits: declare HiddenState() of the reference too"])
        return self._reference_logits


class Quantity(ABC):
    """One number per answer position."""

    reads_reference_logits: ClassVar[bool] = False

    @abstractmethod
    def of(self, chunk: Chunk) -> Tensor:
        """The value at each position of the chunk, [n]."""


Observable = Quantity | HiddenState


@dataclass(frozen=True)
class Nll(Quantity):
    """Negative log-likelihood of the target, `logsumexp(z) - z_y`, nats."""

    def of(self, chunk: Chunk) -> Tensor:
        return chunk.parts.largest - chunk.target_logits + chunk.parts.excess


@dataclass(frozen=True)
class LogSumExp(Quantity):
    """`logsumexp(z / T)`; the free energy in units of T is its negative."""

    temperature: float = 1.0

    def of(self, chunk: Chunk) -> Tensor:
        return chunk.logsumexp if self.temperature == 1.0 else logsumexp(chunk.logits, self.temperature)


@dataclass(frozen=True)
class TopLogSumExp(Quantity):
    """logsumexp of the floor(ratio * V) largest logits, the others set to zero: `-m_in` of EUA."""

    ratio: float
    temperature: float = 1.0
    zero_fill: bool = True

    def of(self, chunk: Chunk) -> Tensor:
        return selected_logsumexp(chunk.logits, self.ratio, self.temperature, largest=True, zero_fill=self.zero_fill)


@dataclass(frozen=True)
class BottomLogSumExp(Quantity):
    """logsumexp of the floor(ratio * V) smallest logits, the others set to zero: `-m_out` of EUA."""

    ratio: float
    temperature: float = 1.0
    zero_fill: bool = True

    def of(self, chunk: Chunk) -> Tensor:
        return selected_logsumexp(chunk.logits, self.ratio, self.temperature, largest=False, zero_fill=self.zero_fill)


@dataclass(frozen=True)
class CentredEnergy(Quantity):
    """Free energy of the logits less their mean; unchanged by a constant shift of the logits."""

    temperature: float = 1.0

    def of(self, chunk: Chunk) -> Tensor:
        return centred_energy(chunk.logits, self.temperature)


@dataclass(frozen=True)
class MeanLogit(Quantity):
    """The mean of the V logits."""

    def of(self, chunk: Chunk) -> Tensor:
        return chunk.logits.mean(dim=-1)


@dataclass(frozen=True)
class MaxLogit(Quantity):
    """The largest of the V logits."""

    def of(self, chunk: Chunk) -> Tensor:
        return chunk.logits.amax(dim=-1)


@dataclass(frozen=True)
class LargestProbability(Quantity):
    """The probability of the most likely token, above 0 and at most 1."""

    def of(self, chunk: Chunk) -> Tensor:
        return (chunk.logits.amax(dim=-1) - chunk.parts.largest - chunk.parts.excess).exp()


@dataclass(frozen=True)
class LogitMargin(Quantity):
    """The largest logit less the second largest, at least 0: how far the most likely token is ahead."""

    def of(self, chunk: Chunk) -> Tensor:
        first, second = chunk.logits.topk(2, dim=-1).values.unbind(-1)
        return first - second


@dataclass(frozen=True)
class Entropy(Quantity):
    """Entropy of softmax(z), nats, between 0 and log V."""

    def of(self, chunk: Chunk) -> Tensor:
        return chunk.entropy


@dataclass(frozen=True)
class LogProbVariance(Quantity):
    """Variance of log p under the model, sum p (log p)^2 - entropy^2, nats^2: the scale of Min-K%++. 0 at a certain token.

    The entropy, `Entropy`, is minus the mean of the same log p. Source: Zhang et al. 2024 (2404.02936), eq. 3.
    """

    def of(self, chunk: Chunk) -> Tensor:
        log_p = chunk.log_probabilities
        return (log_p.exp() * log_p.square()).sum(dim=-1) - chunk.entropy.square()


@dataclass(frozen=True)
class Correct(Quantity):
    """1 where the target is the most likely token, else 0. No gradient."""

    def of(self, chunk: Chunk) -> Tensor:
        return (chunk.logits.argmax(dim=-1) == chunk.targets).to(chunk.logits.dtype)


@dataclass(frozen=True)
class MostLikely(Quantity):
    """The id of the most likely token, exact below 2^24. No gradient."""

    def of(self, chunk: Chunk) -> Tensor:
        return chunk.logits.argmax(dim=-1).to(chunk.logits.dtype)


@dataclass(frozen=True)
class KlFromReference(Quantity):
    """KL(softmax(z_ref) || softmax(z)), nats: how far the policy has moved from the reference at this position."""

    reads_reference_logits: ClassVar[bool] = True

    def of(self, chunk: Chunk) -> Tensor:
        log_r = torch.log_softmax(chunk.reference_logits, dim=-1)
        return (log_r.exp() * (log_r - chunk.log_probabilities)).sum(dim=-1)


@dataclass(frozen=True)
class KlFromUniform(Quantity):
    """KL(uniform || softmax(z)) = logsumexp(z) - mean(z) - log V, nats: 0 where every token is equally likely."""

    def of(self, chunk: Chunk) -> Tensor:
        return chunk.logsumexp - chunk.logits.mean(dim=-1) - math.log(chunk.logits.shape[-1])


@dataclass(frozen=True)
class TargetlessCrossEntropy(Quantity):
    """Cross-entropy of softmax(z) with itself after the target was taken out and the rest normalised, nats.

    That distribution is a constant to the gradient: q = softmax(z with z_y = -inf), and the value is -sum_v q_v log p_v.
    """

    def of(self, chunk: Chunk) -> Tensor:
        others = chunk.logits.detach().scatter(1, chunk.targets.unsqueeze(1), -math.inf)
        return _cross_entropy(others, chunk)


@dataclass(frozen=True)
class LoweredReferenceCrossEntropy(Quantity):
    """Cross-entropy of softmax(z) with the reference's distribution after its target logit was lowered by `beta`, nats.

    A target of `IGNORE` counts from the end of the vocabulary: it lowers the logit of token V - 100, as in the reference
    implementation of UNDIAL; at answer positions there is none.
    """

    reads_reference_logits: ClassVar[bool] = True
    beta: float

    def of(self, chunk: Chunk) -> Tensor:
        target = chunk.targets.remainder(chunk.logits.shape[-1]).unsqueeze(1)
        lowering = chunk.reference_logits.new_full(target.shape, -self.beta)
        return _cross_entropy(chunk.reference_logits.scatter_add(1, target, lowering), chunk)


def _cross_entropy(soft_logits: Tensor, chunk: Chunk) -> Tensor:
    """-sum_v softmax(soft_logits)_v log softmax(z)_v at each position. soft_logits: [n, V]. Returns [n]."""
    return chunk.logsumexp - (torch.softmax(soft_logits, dim=-1) * chunk.logits).sum(dim=-1)
