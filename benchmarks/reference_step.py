"""The step of EUA's reference code, restated literally: what `step_time.py` measures the trainer against.

Two models, five forwards, every one with labels (so that transformers computes a cross-entropy each time), energies and
margins at *all* positions with dense zero-filled tensors, and the answer mask applied at the very end. Nothing in here is
used by the package; it exists to be slow in the same way. Source: D2 reference code, commit 67cc8f5, as audited.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from d2unlearn.methods import EUA
from d2unlearn.observation import Batch


@dataclass(frozen=True)
class DenseMargins:
    """-logsumexp of the zero-filled logits, [B, T - 1]: both kinds are made for both sets, two of the four are used."""

    largest: Tensor
    smallest: Tensor


def reference_step_loss(policy: nn.Module, frozen: nn.Module, forget: Batch, retain: Batch, method: EUA) -> Tensor:
    """The scalar loss of one micro-batch, its three graphs of the policy alive until the caller's backward."""
    retain_nll = _forward(policy, retain).loss
    forget_logits = _forward(policy, forget).logits
    retain_logits = _forward(policy, retain).logits
    forget_margins, retain_margins = frozen_margins(frozen, forget, retain, method)
    above = torch.relu(_energies(retain_logits, method.temperature) - retain_margins.largest) ** 2
    below = torch.relu(forget_margins.smallest - _energies(forget_logits, method.temperature)) ** 2
    hinges = above[_answers(retain)].mean() + below[_answers(forget)].mean()
    return method.gamma * hinges + method.alpha * retain_nll


@torch.no_grad()
def frozen_margins(frozen: nn.Module, forget: Batch, retain: Batch, method: EUA) -> tuple[DenseMargins, DenseMargins]:
    """Both margins of both sets: the share of the step that a reference computed once does away with."""
    forget_logits = _forward(frozen, forget).logits
    retain_logits = _forward(frozen, retain).logits
    return _dense_margins(forget_logits, method), _dense_margins(retain_logits, method)


def _forward(model: nn.Module, batch: Batch):  # type: ignore[no-untyped-def]
    return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels)


def _energies(logits: Tensor, temperature: float) -> Tensor:
    shifted = logits[..., :-1, :].contiguous()
    return -torch.logsumexp(shifted / temperature, dim=-1)


def _dense_margins(logits: Tensor, method: EUA) -> DenseMargins:
    shifted = logits[..., :-1, :].contiguous()
    k = math.floor(method.ratio * shifted.shape[-1])
    top = torch.topk(shifted, k, dim=-1)
    bottom = torch.topk(-shifted, k, dim=-1)
    largest = torch.zeros_like(shifted).scatter(-1, top.indices, top.values)
    smallest = torch.zeros_like(shifted).scatter(-1, bottom.indices, -bottom.values)
    return DenseMargins(
        largest=-torch.logsumexp(largest / method.temperature, dim=-1),
        smallest=-torch.logsumexp(smallest / method.temperature, dim=-1),
    )


def _answers(batch: Batch) -> Tensor:
    return batch.labels[..., 1:].contiguous() != -100
