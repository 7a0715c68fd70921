"""How weights may change without harm to retained rows: their second moments, and a gradient that spares what they need.

For a linear layer y = W x with a gradient g at its output, over the retained rows' tokens

    A = E[x x^T]   [I, I]          G = E[g g^T]   [O, O]          each scaled to a mean eigenvalue of 1

a change dW raises their loss by about tr(G dW A dW^T) / 2 (a Kronecker-factored Fisher matrix). Fine-tuning restores the large
singular components of what was taken away, and retained rows live where A and G are large. So of a gradient D [O, I] there is
left

    (G + d)^-1  D'  (A + d)^-1         D' = D without its `dropped` largest singular components, d = damping

Source: Martens and Grosse 2015 (1503.05671) for the factors; RepSelect, 2606.17168, for the dropped components.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Moments(NamedTuple):
    """Of one linear layer: `inputs` [I, I] and `gradients` [O, O], sums over tokens of outer products, in float32."""

    inputs: Tensor
    gradients: Tensor


@contextmanager
def recorded_moments(layers: Mapping[str, nn.Linear], counted: Callable[[], Tensor]) -> Iterator[dict[str, Moments]]:
    """Adds up the layers' moments over all forward and backward passes inside the block.

    counted: the current batch's positions that count, bool [B, T]: padding would belong to the inputs otherwise.
    """
    found = {
        name: Moments(
            layer.weight.new_zeros(layer.in_features, layer.in_features, dtype=torch.float32),
            layer.weight.new_zeros(layer.out_features, layer.out_features, dtype=torch.float32),
        )
        for name, layer in layers.items()
    }

    def add(total: Tensor, states: Tensor) -> None:
        chosen = states.detach()[counted()].float()
        total.addmm_(chosen.T, chosen)

    def before(total: Tensor, _layer: nn.Module, given: Any) -> None:
        add(total, given[0])

    def back(total: Tensor, _layer: nn.Module, _into: Any, out: Any) -> None:
        add(total, out[0])

    handles = []
    for name, layer in layers.items():
        handles.append(layer.register_forward_pre_hook(partial(before, found[name].inputs)))
        handles.append(layer.register_full_backward_hook(partial(back, found[name].gradients)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def spared(gradient: Tensor, moments: Moments, *, dropped: int, damping: float) -> Tensor:
    """A gradient without its large components and less the more retained rows need a direction. gradient: [O, I]."""
    minor = without_top_components(gradient.float(), dropped)
    return damped_inverse(moments.gradients, damping) @ minor @ damped_inverse(moments.inputs, damping)


def without_top_components(matrix: Tensor, count: int) -> Tensor:
    """The matrix less its `count` largest singular components; zero where it has no more."""
    if not count:
        return matrix
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    minor: Tensor = (left[:, count:] * values[count:]) @ right[count:]
    return minor


def damped_inverse(moment: Tensor, damping: float) -> Tensor:
    """(S + damping)^-1 with S the moment [n, n], scaled so that its mean eigenvalue is 1; all zeros count as the identity."""
    identity = torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    mean = moment.diagonal().mean()
    scaled = moment / mean if mean > 0 else identity
    inverse: Tensor = torch.linalg.inv(scaled + damping * identity)
    return inverse


def step_against(weights: Sequence[Tensor], directions: Sequence[Tensor], share: float) -> None:
    """weights -= share |weights| directions / |directions|, in place; norms over all of them together.

    Nothing moves along directions that are all zero.
    """
    length = _norm(directions)
    if length == 0:
        return
    scale = share * _norm(weights) / length
    with torch.no_grad():
        for weight, direction in zip(weights, directions, strict=True):
            weight.sub_(direction.to(weight), alpha=scale)


def _norm(tensors: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.detach().float().square().sum()) for tensor in tensors))
