"""The free energy of a position: its sign, its unit, its temperature, its margins. Said here and only here.

    free energy      E(z)   = -T * logsumexp(z / T)                     nats; lower = the model is surer that it knows
    centred energy   E_c(z) = -T * logsumexp((z - mean(z)) / T)         at T = 1: E_c + log V = -KL(uniform || softmax(z)) <= 0

z are the V logits of one position. Knowledge makes single logits large, so energy falls; a position that knows nothing has
energy near `-log V` when its logits are near zero. Energy is not invariant to adding a constant to all logits, though the
softmax is: read it beside a measure of knowledge (see docs/method.md). The centred form has no such loophole.

The margins of EUA come from a frozen reference's logits z_ref, with k = floor(ratio * V) logits kept and *the other V - k
set to zero* (the zero fill is part of the method: without it `m_out` moves by about 6 nats):

    m_in  = -logaddexp(logsumexp(top-k z_ref / T),    log(V - k))       retained positions should stay below it
    m_out = -logaddexp(logsumexp(bottom-k z_ref / T), log(V - k))       forgotten positions should rise above it

Source: Liu et al. 2020 (energy); D2, arXiv 2605.16776, and its reference code at commit 67cc8f5 (margins). The reference
code leaves out the leading T of the energy, so its margins are in units of E / T: equal at T = 1. EUA uses E / T throughout.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from d2unlearn.errors import ConfigError


class Margins(NamedTuple):
    """Energy bounds per position, each [...], in units of E / T."""

    m_in: Tensor
    m_out: Tensor


def free_energy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """`-T * logsumexp(z / T)` over the last dimension, in float32 (float64 stays float64).

    logits: [..., V], any floating dtype. Returns [...]. Raises `ConfigError` for a temperature that is not positive.
    Source: Liu et al. 2020, eq. 4.
    """
    return -logsumexp(logits, temperature) * temperature


def centred_energy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Free energy of the logits less their mean: unchanged when a constant is added to every logit.

    logits: [..., V]. Returns [...], at most `-T * log V`, with equality only at the uniform distribution.
    """
    logits = at_least_float32(logits)
    return free_energy(logits - logits.mean(dim=-1, keepdim=True), temperature)


def reference_margins(logits: Tensor, ratio: float, temperature: float = 1.0) -> Margins:
    """EUA's energy bounds from a frozen reference's logits, in closed form (no dense [..., V] copies).

    logits: [..., V]; ratio: share of logits kept, `floor(ratio * V)` of them, at least 1 and fewer than V.
    Returns `Margins(m_in, m_out)`, each [...], in units of E / T. Source: D2 reference code, commit 67cc8f5.
    """
    return Margins(
        m_in=-selected_logsumexp(logits, ratio, temperature, largest=True),
        m_out=-selected_logsumexp(logits, ratio, temperature, largest=False),
    )


def logsumexp(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """`logsumexp(z / T)` over the last dimension, in float32. logits: [..., V]. Returns [...]."""
    check_temperature(temperature)
    logits = at_least_float32(logits)
    return torch.logsumexp(logits if temperature == 1.0 else logits / temperature, dim=-1)


class LogSumExpParts(NamedTuple):
    """logsumexp(z) = `largest + excess`: the largest logit, and what the others add to it, between 0 and log V. Each [...]."""

    largest: Tensor
    excess: Tensor


def logsumexp_parts(logits: Tensor) -> LogSumExpParts:
    """The two parts of `logsumexp(z)` over the last dimension, in float32. logits: [..., V].

    A logit taken from `largest` before `excess` is added keeps the digits that their sum, rounded, has lost. To the gradient
    `largest` is a constant: only the sum of both parts has the gradient of logsumexp.
    """
    logits = at_least_float32(logits)
    largest = logits.detach().amax(dim=-1)
    return LogSumExpParts(largest, (logits - largest.unsqueeze(-1)).exp_().sum(dim=-1).log_())


def selected_logsumexp(
    logits: Tensor, ratio: float, temperature: float = 1.0, *, largest: bool, zero_fill: bool = True
) -> Tensor:
    """logsumexp over the k largest (or smallest) logits, with the others set to zero unless `zero_fill` is off.

    logits: [..., V]. Returns [...], in float32.
    """
    check_temperature(temperature)
    width = logits.shape[-1]
    k = selected_count(ratio, width)
    kept = torch.topk(logits, k, dim=-1, largest=largest, sorted=False).values
    total = logsumexp(kept, temperature)
    if not zero_fill:
        return total
    return torch.logaddexp(total, torch.full_like(total, math.log(width - k)))


def selected_count(ratio: float, width: int) -> int:
    """k = floor(ratio * V). Raises `ConfigError` when that keeps no logit, or all of them."""
    k = math.floor(ratio * width)
    if not 0 < k < width:
        good = max(0.1, 1.5 / width)
        raise ConfigError(
            [f"ratio {ratio} keeps {k} of {width} logits; choose one that keeps 1 to {width - 1}, e.g. {good:.2g}"]
        )
    return k


def check_temperature(temperature: float) -> None:
    """Raises `ConfigError` unless the temperature is a positive, finite number."""
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ConfigError([f"temperature must be a positive number, not {temperature}"])


def at_least_float32(values: Tensor) -> Tensor:
    """float16 and bfloat16 raised to float32; float32 and float64 as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
