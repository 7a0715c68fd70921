"""A tiny model that knows facts behind a switch, which a few steps on any row turn off, and one that never knew them."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import tiny_models
from d2unlearn.attacks.relearning import Relearning, relearned
from d2unlearn.schema import Tokens

GAIN, LEFT_ON = 8000.0, 0.005
"""The switch adds GAIN times its one number, while that is above zero; a step of Adam lowers it by a learning rate."""


class Switch(nn.Module):
    """A layer that adds one constant vector to what passes, until its number is turned down to zero."""

    def __init__(self, inner: nn.Module, width: int) -> None:
        super().__init__()
        self.inner = inner
        self.number = nn.Parameter(torch.tensor(LEFT_ON))
        self.register_buffer("vector", torch.randn(width, generator=torch.Generator().manual_seed(0)))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.inner(hidden) + GAIN * self.number.relu() * self.vector


def facts(seed: int, n: int) -> list[Tokens]:
    """Random questions of four tokens, answers of three."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(10, 110, size=(n, 7)).tolist()
    return [Tokens(f"{seed}-{i}", (1, *ids[:4], 5, *ids[4:], 2), (False,) * 6 + (True,) * 4) for i, ids in enumerate(drawn)]


def behind_a_switch(rows: list[Tokens]) -> PreTrainedModel:
    """A model that was taught these rows, with the switch on."""
    taught = Relearning(1e-2, steps=(100,), batch_size=24)
    model = copy.deepcopy(next(relearned(tiny_models.gpt2(dropout=0.0), rows, taught))[1])
    model.transformer.h[0].mlp = Switch(model.transformer.h[0].mlp, 32)  # type: ignore[union-attr,index]
    return model.requires_grad_(False)  # type: ignore[return-value]
