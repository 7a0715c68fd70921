"""What the mistakes do that `convention="open-unlearning"` keeps: losses and gradients on the parity batch, both ways.

The table that `make docs` puts on docs/methods.md.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from d2unlearn.likelihood import IGNORE
from d2unlearn.methods import METHODS, batch_loss
from d2unlearn.models import load_model
from d2unlearn.positions import Labelled
from d2unlearn.runtime import read_json
from tables import ROOT, table

DATA = ROOT / "tests" / "parity" / "data"
PADDING = 16
CONVENTIONS = ("d2unlearn", "open-unlearning")
TERMS: dict[str, tuple[str, dict[str, Any]]] = {
    "KL as the retain term": ("gradient_difference", {"gamma": 0.0, "retain_loss_type": "KL"}),
    "UNDIAL": ("undial", {}),
    "PDU, forget term": ("pdu", {"alpha": 0.0}),
    "RMU": ("rmu", {"module_regex": r"model\.layers\.0"}),
}
"""The terms that differ, each by itself."""


class Found(NamedTuple):
    """A term's loss, its gradient over all parameters as one vector, and its loss with more padding."""

    loss: float
    gradient: Tensor
    padded: float


def conventions_table() -> str:
    """One line a term: the same loss, gradient and padded loss, here and there."""
    models = {name: load_model(DATA / name) for name in ("model", "reference")}
    batch = read_json(DATA / "batch.json")
    lines = []
    for name in TERMS:
        here, there = (measure(name, convention, models, batch) for convention in CONVENTIONS)
        cosine = nn.functional.cosine_similarity(here.gradient, there.gradient, dim=0)
        lines.append(
            [
                name,
                *(f"{each.loss:.3g}" for each in (here, there)),
                *(f"{float(each.gradient.norm()):.3g}" for each in (here, there)),
                f"{float(cosine):.2f}",
                *(f"{100 * (each.padded / each.loss - 1):+.0f}%".replace("-0%", "+0%") for each in (here, there)),
            ]
        )
    head = ["term", "loss", "published", "gradient norm", "published", "cosine of both", "loss, more padding", "published"]
    return f"{table(head, lines, 'lrrrrrrr')}\n{row_weights(batch)}"


def measure(name: str, convention: str, models: dict[str, nn.Module], batch: dict[str, Any]) -> Found:
    key, parameters = TERMS[name]
    method = METHODS[key](**parameters, convention=convention)
    model, reference = models["model"], models["reference"]
    loss = batch_loss(method, model, batch, reference=reference)
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    flat = [torch.zeros_like(p) if g is None else g for p, g in zip(model.parameters(), found, strict=True)]
    padded = batch_loss(method, model, {role: widened(each) for role, each in batch.items()}, reference=reference)
    return Found(loss.item(), torch.cat([each.double().flatten() for each in flat]), padded.item())


def widened(rows: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
    """The batch with further columns of padding."""
    fill = {"input_ids": 0, "attention_mask": 0, "labels": IGNORE}
    return {name: [[*row, *[fill[name]] * PADDING] for row in each] for name, each in rows.items()}


def row_weights(batch: dict[str, Any]) -> str:
    """What each retained row of the batch weighs in RMU's published mean, where it should weigh one."""
    lengths = Labelled().mask(torch.tensor(batch["retain"]["labels"])).sum(dim=1).double()
    weights = lengths * (1 / lengths).mean()
    said = ", ".join(f"{int(n)} tokens {w:.2f}" for n, w in sorted(zip(lengths.tolist(), weights.tolist(), strict=True)))
    return f"Weight of a retained row in RMU's published mean, where each should weigh 1: {said}."
