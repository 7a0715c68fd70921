"""Rows scored teacher-forced: the model reads the true answer, and every one of its tokens is held against what it predicts.

One pass serves the energies and all metrics of likelihood and memorization (`metrics/memorization.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from d2unlearn.data.batching import by_length, pad_tokens
from d2unlearn.observation import observe
from d2unlearn.quantities import Correct, LogSumExp, Nll, Quantity
from d2unlearn.runtime import progress
from d2unlearn.schema import Tokens


@dataclass(frozen=True)
class TeacherForced:
    """One answer of n predicted tokens. nll: of each token, nats; correct: whether each is the most likely one.

    `prompt_energy` is the free energy (nats) at the last prompt position, `answer_energy` its mean over the positions that
    predict the answer's tokens. For an answer without a token both and `mean_nll` are NaN.
    """

    prompt_energy: float
    answer_energy: float
    nll: tuple[float, ...]
    correct: tuple[bool, ...]

    @property
    def mean_nll(self) -> float:
        """Nats a token."""
        return float(np.mean(self.nll)) if self.nll else math.nan


def teacher_forced(logsumexp: ArrayLike, nll: ArrayLike, correct: ArrayLike = ()) -> TeacherForced:
    """From the numbers at the n positions that predict an answer's tokens; `correct` may be left out."""
    energies = -np.asarray(logsumexp, dtype=np.float64)
    prompt, mean = (float(energies[0]), float(energies.mean())) if len(energies) else (math.nan, math.nan)
    right = tuple(np.asarray(correct, dtype=np.bool_).tolist())
    return TeacherForced(prompt, mean, tuple(np.asarray(nll, dtype=np.float64).tolist()), right)


def score_rows(
    model: nn.Module, rows: Sequence[Tokens], *, batch_size: int, vocab_rows: int | None = None, name: str = ""
) -> list[TeacherForced]:
    """Each rendered row's true answer, in the rows' order. `name`: of the progress bar, none without."""
    quantities = (LogSumExp(), Nll(), Correct())
    read = read_quantities(model, rows, quantities, batch_size=batch_size, vocab_rows=vocab_rows, name=name)
    return [teacher_forced(*(of_row[quantity] for quantity in quantities)) for of_row in read]


@torch.no_grad()
def read_quantities(
    model: nn.Module,
    rows: Sequence[Tokens],
    quantities: Sequence[Quantity],
    *,
    batch_size: int,
    vocab_rows: int | None = None,
    name: str = "",
) -> list[dict[Quantity, NDArray[np.float32]]]:
    """The quantities at the n positions that predict a row's true answer, [n] each, in the rows' order."""
    device = next(model.parameters()).device
    read: list[dict[Quantity, NDArray[np.float32]]] = [{} for _ in rows]
    batches = list(by_length([len(row.input_ids) for row in rows], batch_size))
    for indices in progress(batches, f"likelihoods, {name}", total=len(batches)) if name else batches:
        batch = pad_tokens([rows[index] for index in indices], pad_id=0).to(device)
        values = observe(model, {"forget": batch}, {"forget": quantities}, vocab_rows=vocab_rows)["forget"]
        ends = np.cumsum([rows[index].answer_length for index in indices])[:-1]
        for quantity in quantities:
            columns = np.split(values[quantity].float().cpu().numpy(), ends)
            for index, column in zip(indices, columns, strict=True):
                read[index][quantity] = column
    return read
