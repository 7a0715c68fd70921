"""What a person steers by while a model unlearns: energies, likelihoods, separation, and a plain warning before it breaks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from torch import nn

from d2unlearn.schema import Kind, Tokens
from d2unlearn.stats import auroc, harmonic_mean
from d2unlearn.teacher_forcing import TeacherForced, score_rows

ENERGY_RUNAWAY = 0.5
"""Warn when the retained energy has risen by this share of the distance between where it began and -log V."""
SMALLEST_ROOM = 2.0
"""That distance is taken as this many nats at least: near -log V a share of it would be noise."""
NLL_RUNAWAY = 1.0
"""Warn when the retained NLL has grown by this many nats a token."""


@dataclass(frozen=True)
class Snapshot:
    """State of a model on the forget rows and on held-out retained rows. Energies and NLL: nats, means over rows.

    `auroc` tells forget from retained requests by the energy at the last prompt position. `selection`, by which the best
    checkpoint is kept, is the harmonic mean of: erased (1 - forget probability), kept (retained probability over what it was
    before), and `auroc`. No single one of the three can buy it: not energy alone, not a broken model.
    """

    forget_energy: float
    retain_energy: float
    forget_probability: float
    retain_probability: float
    retain_nll: float
    auroc: float
    selection: float = math.nan

    def metrics(self, prefix: str = "eval") -> dict[str, float]:
        """As the trainer logs it."""
        return {f"{prefix}_{name}": value for name, value in asdict(self).items()}


def take_snapshot(
    model: nn.Module,
    rows: Mapping[Kind, Sequence[Tokens]],
    *,
    batch_size: int = 16,
    before: Snapshot | None = None,
    vocab_rows: int | None = None,
) -> Snapshot:
    """Look at a model in evaluation mode. `before` is the snapshot that `kept` is measured against (None: this one)."""
    training = model.training
    model.eval()
    scored = {kind: _scored(model, kind_rows, batch_size, vocab_rows) for kind, kind_rows in rows.items()}
    model.train(training)
    probability = {kind: _mean([math.exp(-row.mean_nll) for row in scored[kind]]) for kind in scored}
    kept = 1.0 if before is None else min(1.0, probability["retain"] / max(before.retain_probability, 1e-12))
    separation = auroc(*([row.prompt_energy for row in scored[kind]] for kind in ("retain", "forget")))
    return Snapshot(
        forget_energy=_mean([row.answer_energy for row in scored["forget"]]),
        retain_energy=_mean([row.answer_energy for row in scored["retain"]]),
        forget_probability=probability["forget"],
        retain_probability=probability["retain"],
        retain_nll=_mean([row.mean_nll for row in scored["retain"]]),
        auroc=separation,
        selection=harmonic_mean([1 - probability["forget"], kept, separation]),
    )


def warning_of(before: Snapshot, now: Snapshot, *, energy_of_nothing: float) -> str | None:
    """A sentence when the model is being destroyed, else None. `energy_of_nothing` is -log V.

    Some models (GPT-2) begin *above* -log V, since all their logits lie far below zero: there the distance is a scale only.
    """
    if not (math.isfinite(now.retain_nll) and math.isfinite(now.retain_energy)):
        return "the model is destroyed: its retained energy or likelihood is no longer a number; lower the learning rate"
    room = max(abs(energy_of_nothing - before.retain_energy), SMALLEST_ROOM)
    risen = now.retain_energy - before.retain_energy
    if risen > ENERGY_RUNAWAY * room:
        return (
            f"the model is being destroyed: retained energy rose from {before.retain_energy:.2f} to {now.retain_energy:.2f} "
            "nats, away from what it knows; lower the learning rate or raise alpha"
        )
    if now.retain_nll > before.retain_nll + NLL_RUNAWAY:
        return (
            f"the model is being destroyed: retained NLL grew from {before.retain_nll:.3f} to {now.retain_nll:.3f} nats a "
            "token; lower the learning rate or raise alpha"
        )
    return None


def _scored(model: nn.Module, rows: Sequence[Tokens], batch_size: int, vocab_rows: int | None) -> list[TeacherForced]:
    """Each row that has an answer."""
    with_answer = [row for row in rows if row.answer_length]
    return score_rows(model, with_answer, batch_size=batch_size, vocab_rows=vocab_rows)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan
