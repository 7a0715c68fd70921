"""Membership: whether a model's scores of the forgotten rows tell that they were once seen, or that they were removed.

The scores of `metrics.membership`, and the energies that unlearning itself moves: at the prompt's end and over the answer,
with and without the logits' mean, and the entropy there. All are higher for what looks less like a member. `membership_auc`
holds them against those of rows that the model never saw, or against a never-knew model's of the same rows: an AUC far from 0.5
either way tells.

Source: loss, Yeom et al. 2018 (1709.01604); the others as in `metrics.membership`; energy, Liu et al. 2020 (2010.03759).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from d2unlearn.attacks.reading import AskedRows, Reading, reading_of
from d2unlearn.errors import ConfigError
from d2unlearn.metrics.membership import MIN_K_SHARE, min_k, min_k_plus_plus, zlib_score
from d2unlearn.quantities import CentredEnergy, Entropy, LogProbVariance, LogSumExp, Nll, Quantity
from d2unlearn.teacher_forcing import read_quantities

QUANTITIES_READ: tuple[Quantity, ...] = (Nll(), LogSumExp(), CentredEnergy(), Entropy(), LogProbVariance())


@dataclass(frozen=True)
class MembershipAttack:
    """share: of an answer's tokens that Min-K% and Min-K%++ look at."""

    share: float = MIN_K_SHARE

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigError([f"the share of tokens must lie above 0 and be at most 1, not {self.share}"])


def membership_readings(
    model: nn.Module, asked: AskedRows, answers: Sequence[str], attack: MembershipAttack, *, batch_size: int = 32
) -> list[Reading]:
    """One reading a score. answers: each row's, as text, for zlib. A row without a predicted token has NaN everywhere."""
    read = read_quantities(model, asked.tokens, QUANTITIES_READ, batch_size=batch_size)
    scores = [membership_scores(values, answer, attack.share) for values, answer in zip(read, answers, strict=True)]
    names = list(scores[0]) if scores else []
    return [reading_of(asked, {"number": name}, "score", [of_row[name] for of_row in scores]) for name in names]


def membership_scores(
    values: Mapping[Quantity, NDArray[np.float32]], answer: str, share: float = MIN_K_SHARE
) -> dict[str, float]:
    """All scores of one row. values: `QUANTITIES_READ` at the n positions that predict the answer, [n] each."""
    nll, entropy = values[Nll()], values[Entropy()]
    loss = _mean(nll)
    energies = {"energy": -values[LogSumExp()], "centred energy": values[CentredEnergy()], "entropy": entropy}
    return {
        "loss": loss,
        "zlib": zlib_score(loss, answer),
        "min_k": min_k(nll, share),
        "min_k_plus_plus": min_k_plus_plus(nll, entropy, values[LogProbVariance()], share),
        **{f"{name} of the prompt": _first(numbers) for name, numbers in energies.items()},
        **{f"{name} of the answer": _mean(numbers) for name, numbers in energies.items()},
    }


def _first(values: NDArray[np.float32]) -> float:
    return float(values[0]) if len(values) else math.nan


def _mean(values: NDArray[np.float32]) -> float:
    return float(values.mean(dtype=np.float64)) if len(values) else math.nan
