"""Plain fine-tuning on answers, step by step: what an attack does to a model, and a method that trains against one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn

from d2unlearn.data.batching import pad_tokens
from d2unlearn.observation import observe
from d2unlearn.quantities import Nll
from d2unlearn.runtime import drawing_from
from d2unlearn.schema import Tokens


def batch_order(n: int, *, steps: int, batch_size: int, seed: int) -> Iterator[list[int]]:
    """Indices of n rows for each step: shuffled passes, one after another, cut into batches."""
    rng = np.random.default_rng(seed)
    needed = math.ceil(steps * batch_size / n)
    order = np.concatenate([np.arange(0), *(rng.permutation(n) for _ in range(needed))])
    yield from order[: steps * batch_size].reshape(steps, batch_size).tolist()


def fine_tuning_steps(
    model: nn.Module, rows: Sequence[Tokens], *, learning_rate: float, steps: int, batch_size: int, seed: int
) -> Iterator[int]:
    """Train the model on the mean NLL of batches of answers, with AdamW; yields the number of steps taken, after each.

    Batches are no larger than there are rows. `seed` draws the rows' order, and dropout.
    """
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
    device = next(model.parameters()).device
    batches = batch_order(len(rows), steps=steps, batch_size=min(batch_size, len(rows)), seed=seed)
    for step, indices in enumerate(batches, start=1):
        with drawing_from(seed + step, device), torch.enable_grad():
            fine_tuning_step(model.train(), [rows[index] for index in indices], optimizer)
        yield step


def fine_tuning_step(model: nn.Module, rows: Sequence[Tokens], optimizer: torch.optim.Optimizer) -> None:
    """One step of the optimizer on the mean NLL of the rows' answers."""
    batch = pad_tokens(rows, pad_id=0).to(next(model.parameters()).device)
    loss = observe(model, {"forget": batch}, {"forget": (Nll(),)})["forget"][Nll()].mean()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
