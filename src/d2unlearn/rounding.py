"""Weights rounded to integers, as floats: what a quantised layer computes with, without its kernels."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def rounded_to_integers(weight: Tensor, bits: int, *, group_size: int | None = None, symmetric: bool = True) -> Tensor:
    """The nearest weights on the grid of each group: `group_size` weights that one output reads, or all of them (None); the
    last group may be shorter. weight: [outputs, inputs]. Returns the same shape and dtype; scales are float32.

    symmetric: from -(2^(b-1) - 1) to 2^(b-1) - 1 steps, the largest magnitude at the end. Else 2^b - 1 steps from the smallest
    to the largest weight, stretched to hold zero, which is on the grid. No weight moves by more than half a step; by one at
    the ends of an asymmetric grid, whose zero is rounded too.
    """
    outputs, inputs = weight.shape
    size = group_size or inputs
    values = nn.functional.pad(weight.float(), (0, -inputs % size)).reshape(outputs, -1, size)
    made = _symmetric(values, bits) if symmetric else _asymmetric(values, bits)
    return made.reshape(outputs, -1)[:, :inputs].to(weight.dtype)


def _symmetric(values: Tensor, bits: int) -> Tensor:
    """values: [..., group], a grid each."""
    last = 2 ** (bits - 1) - 1
    step = _not_zero(values.abs().amax(dim=-1, keepdim=True) / last)
    return (values / step).round().clamp(-last, last) * step


def _asymmetric(values: Tensor, bits: int) -> Tensor:
    """values: [..., group], a grid each."""
    last = 2**bits - 1
    low = values.amin(dim=-1, keepdim=True).clamp(max=0)
    step = _not_zero((values.amax(dim=-1, keepdim=True).clamp(min=0) - low) / last)
    zero = (-low / step).round()
    return ((values / step).round().add(zero).clamp(0, last) - zero) * step


def _not_zero(step: Tensor) -> Tensor:
    """1 where a group holds zeros alone."""
    return torch.where(step > 0, step, 1.0)
