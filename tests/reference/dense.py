"""The formulas as the papers state them, on whole logits and with whole copies: what the quick versions are held against."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, linear

from d2unlearn.observation import Batch
from d2unlearn.quantities import (
    BottomLogSumExp,
    CentredEnergy,
    Correct,
    Entropy,
    KlFromReference,
    KlFromUniform,
    LargestProbability,
    LogitMargin,
    LogProbVariance,
    LogSumExp,
    LoweredReferenceCrossEntropy,
    MaxLogit,
    MeanLogit,
    MostLikely,
    Nll,
    Quantity,
    TargetlessCrossEntropy,
    TopLogSumExp,
)
from d2unlearn.schema import Role

NOT_ANSWER = -100
"""Written out: a mistake in the package's own constant should show."""


def energy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """-T log sum exp(z / T), term by term. [..., V] -> [...]."""
    return -temperature * (logits / temperature).exp().sum(-1).log()


def margins(logits: Tensor, ratio: float, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """(m_in, m_out) in units of E / T: dense copies of the logits in which all but the selected are zero. [..., V] -> [...]."""
    return -selected(logits, ratio, temperature, largest=True), -selected(logits, ratio, temperature, largest=False)


def selected(logits: Tensor, ratio: float, temperature: float = 1.0, *, largest: bool, zero_fill: bool = True) -> Tensor:
    """log sum exp over the k largest (smallest), the rest of the vocabulary set to zero or left out."""
    k = int(ratio * logits.shape[-1])
    ordered = logits.sort(dim=-1, descending=largest).values
    rest = torch.zeros_like(ordered[..., k:]) if zero_fill else torch.full_like(ordered[..., k:], -math.inf)
    return torch.cat([ordered[..., :k], rest], dim=-1).div(temperature).exp().sum(-1).log()


def logits_of(
    hidden: Tensor, weight: Tensor, bias: Tensor | None = None, *, scale: float = 1.0, softcap: float | None = None
) -> Tensor:
    """All logits at once: [N, H], [V, H], [V] -> [N, V]."""
    logits = linear(hidden, weight, bias) * scale
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


Formula = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits [N, V], targets [N], reference logits [N, V]) -> [N]."""


def _variance(p: Tensor, values: Tensor) -> Tensor:
    mean = (p * values).sum(-1, keepdim=True)
    return (p * (values - mean) ** 2).sum(-1)


def _without_target(z: Tensor, y: Tensor) -> Tensor:
    hot = nn.functional.one_hot(y, z.shape[-1])
    others = z.detach().softmax(-1) * (1 - hot)
    return -(others / others.sum(-1, keepdim=True) * z.log_softmax(-1)).sum(-1)


def _lowered(z: Tensor, y: Tensor, r: Tensor, beta: float) -> Tensor:
    soft = (r - beta * nn.functional.one_hot(y, z.shape[-1])).softmax(-1)
    return -(soft * z.log_softmax(-1)).sum(-1)


QUANTITIES: dict[Quantity, Formula] = {
    Nll(): lambda z, y, r: cross_entropy(z, y, reduction="none"),
    LogSumExp(): lambda z, y, r: -energy(z),
    LogSumExp(2.0): lambda z, y, r: -energy(z, 2.0) / 2.0,
    LogSumExp(0.7): lambda z, y, r: -energy(z, 0.7) / 0.7,
    LargestProbability(): lambda z, y, r: z.softmax(-1).amax(-1),
    LogitMargin(): lambda z, y, r: z.sort(dim=-1, descending=True).values.diff(dim=-1)[..., 0].neg(),
    TopLogSumExp(0.1): lambda z, y, r: selected(z, 0.1, largest=True),
    TopLogSumExp(0.3, 2.0, zero_fill=False): lambda z, y, r: selected(z, 0.3, 2.0, largest=True, zero_fill=False),
    BottomLogSumExp(0.1): lambda z, y, r: selected(z, 0.1, largest=False),
    BottomLogSumExp(0.3, 2.0): lambda z, y, r: selected(z, 0.3, 2.0, largest=False),
    CentredEnergy(): lambda z, y, r: energy(z - z.mean(-1, keepdim=True)),
    CentredEnergy(2.0): lambda z, y, r: energy(z - z.mean(-1, keepdim=True), 2.0),
    MeanLogit(): lambda z, y, r: z.sum(-1) / z.shape[-1],
    MaxLogit(): lambda z, y, r: z.sort(-1).values[:, -1],
    Entropy(): lambda z, y, r: -(z.softmax(-1) * z.softmax(-1).log()).sum(-1),
    LogProbVariance(): lambda z, y, r: _variance(z.softmax(-1), z.log_softmax(-1)),
    MostLikely(): lambda z, y, r: z.sort(-1).indices[:, -1].to(z.dtype),
    Correct(): lambda z, y, r: (z.sort(-1).indices[:, -1] == y).to(z.dtype),
    KlFromReference(): lambda z, y, r: kl_div(z.log_softmax(-1), r.softmax(-1), reduction="none").sum(-1),
    KlFromUniform(): lambda z, y, r: kl_div(z.log_softmax(-1), torch.full_like(z, 1 / z.shape[-1]), reduction="none").sum(-1),
    TargetlessCrossEntropy(): lambda z, y, r: _without_target(z, y),
    LoweredReferenceCrossEntropy(1.5): lambda z, y, r: _lowered(z, y, r, 1.5),
}
"""Every quantity, some at several parameters, with its formula."""
WITHOUT_GRADIENT = {Correct(), MostLikely()}


class Parts(NamedTuple):
    """The terms of EUA's loss before they are weighted."""

    retain_hinge: Tensor
    forget_hinge: Tensor
    retain_nll: Tensor


def eua_parts(
    model: nn.Module, reference: nn.Module, batch: Mapping[Role, Batch], *, ratio: float, temperature: float
) -> Parts:
    """EUA with two live models and the logits of every position, masked at the end; the NLL is transformers' own loss."""
    masks = {role: each.labels[:, 1:] != NOT_ANSWER for role, each in batch.items()}

    def shifted(which: nn.Module, role: Role) -> Tensor:
        each = batch[role]
        return which(input_ids=each.input_ids, attention_mask=each.attention_mask).logits[:, :-1]

    energies = {role: energy(shifted(model, role), temperature) / temperature for role in batch}
    with torch.no_grad():
        m_in, _ = margins(shifted(reference, "retain"), ratio, temperature)
        _, m_out = margins(shifted(reference, "forget"), ratio, temperature)
    return Parts(
        retain_hinge=(energies["retain"] - m_in).relu()[masks["retain"]].square().mean(),
        forget_hinge=(m_out - energies["forget"]).relu()[masks["forget"]].square().mean(),
        retain_nll=model(**vars(batch["retain"])).loss,
    )


def eua_loss(
    model: nn.Module,
    reference: nn.Module,
    batch: Mapping[Role, Batch],
    *,
    ratio: float = 0.1,
    temperature: float = 1.0,
    gamma: float = 0.05,
    alpha: float = 1.0,
) -> Tensor:
    """The scalar that the paper minimises."""
    parts = eua_parts(model, reference, batch, ratio=ratio, temperature=temperature)
    return gamma * (parts.retain_hinge + parts.forget_hinge) + alpha * parts.retain_nll
