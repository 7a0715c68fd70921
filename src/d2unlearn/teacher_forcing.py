"""Rows scored teacher-forced: the model reads the true answer, and every one of its tokens is held against what it predicts.

One pass serves the energies and all metrics of likelihood and memorization (`metrics/memorization.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from d2unlearn.data.batching import by_length, pad_tokens
from d2unlearn.head import Head, head_of
from d2unlearn.observation import causal_model, observe
from d2unlearn.quantities import Correct, Entropy, HiddenState, KlFromReference, LogSumExp, MeanLogit, Nll, Observable, Quantity
from d2unlearn.runtime import progress
from d2unlearn.schema import Tokens

Value = TypeVar("Value")
SCORES = (LogSumExp(), Nll(), Correct())
"""What the metrics of likelihood and the energies read."""
LOGIT_QUANTITIES = (MeanLogit(), Entropy())
"""What tells, beside the energy, a moved level from another distribution."""


@dataclass(frozen=True)
class TeacherForced:
    """One answer of n predicted tokens. nll: of each token, nats; correct: whether each is the most likely one.

    `prompt_energy` is the free energy (nats) at the last prompt position, `answer_energy` its mean over the positions that
    predict the answer's tokens; `mean_logit` and `entropy` are means over the same. `kl`: KL(original || model) at each, nats,
    empty where no original was given. For an answer without a token energies and means are NaN, as is what was not read.
    `ends`: the last token is the answer's end token.
    """

    prompt_energy: float
    answer_energy: float
    nll: tuple[float, ...]
    correct: tuple[bool, ...]
    mean_logit: float = math.nan
    entropy: float = math.nan
    kl: tuple[float, ...] = ()
    ends: bool = False

    @property
    def mean_nll(self) -> float:
        """Nats a token."""
        return float(np.mean(self.nll)) if self.nll else math.nan

    @property
    def centred_energy(self) -> float:
        """Mean over the answer's positions of the energy of the logits less their mean: the energy plus the mean logit."""
        return self.answer_energy + self.mean_logit

    @property
    def mean_kl(self) -> float:
        """Nats a token, without the end token; NaN where there is none."""
        kl = self.without_end(self.kl)
        return float(np.mean(kl)) if kl else math.nan

    def without_end(self, values: tuple[Value, ...]) -> tuple[Value, ...]:
        """A value for each token, without that of the end token."""
        return values[:-1] if self.ends else values


@dataclass(frozen=True)
class Original:
    """The model that a KL is taken from: its LM head, and what that read at the answer positions of each row, [n, H]."""

    head: Head
    hidden: Mapping[Tokens, Tensor]


def read_original(model: nn.Module, rows: Sequence[Tokens], *, batch_size: int, name: str = "") -> Original:
    """What a KL from this model needs of the rows."""
    read = row_values(model, rows, (HiddenState(),), batch_size=batch_size, name=name)
    hidden = {row: of_row[HiddenState()] for row, of_row in zip(rows, read, strict=True)}
    return Original(head_of(causal_model(model)), hidden)


def teacher_forced(
    logsumexp: ArrayLike,
    nll: ArrayLike,
    correct: ArrayLike = (),
    *,
    mean_logit: ArrayLike = (),
    entropy: ArrayLike = (),
    kl: ArrayLike = (),
    ends: bool = False,
) -> TeacherForced:
    """From the numbers at the n positions that predict an answer's tokens; all but the first two may be left out."""
    energies = -np.asarray(logsumexp, dtype=np.float64)
    prompt = float(energies[0]) if len(energies) else math.nan
    right = tuple(np.asarray(correct, dtype=np.bool_).tolist())
    columns = (tuple(np.asarray(values, dtype=np.float64).tolist()) for values in (nll, kl))
    return TeacherForced(prompt, _mean(energies), next(columns), right, _mean(mean_logit), _mean(entropy), next(columns), ends)


def score_rows(
    model: nn.Module,
    rows: Sequence[Tokens],
    *,
    batch_size: int,
    vocab_rows: int | None = None,
    name: str = "",
    shape: bool = False,
    original: Original | None = None,
) -> list[TeacherForced]:
    """Each rendered row's true answer, in the rows' order. `name`: of the progress bar, none without.

    shape: read mean logit and entropy too; original: the KL from it too, of rows that it holds.
    """
    wanted = (*SCORES, *(LOGIT_QUANTITIES if shape else ()), *((KlFromReference(),) if original is not None else ()))
    values = row_values(model, rows, wanted, batch_size=batch_size, vocab_rows=vocab_rows, name=name, original=original)
    return [scores_of(row, read) for row, read in zip(rows, values, strict=True)]


def scores_of(row: Tokens, values: Mapping[Observable, Tensor]) -> TeacherForced:
    """From what `row_values` read of the row; it may have read more."""
    empty = torch.zeros(0)
    logsumexp, nll, correct, mean_logit, entropy, kl = (
        values.get(quantity, empty).float().numpy() for quantity in (*SCORES, *LOGIT_QUANTITIES, KlFromReference())
    )
    return teacher_forced(logsumexp, nll, correct, mean_logit=mean_logit, entropy=entropy, kl=kl, ends=row.ends)


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
    read = row_values(model, rows, quantities, batch_size=batch_size, vocab_rows=vocab_rows, name=name)
    return [{quantity: of_row[quantity].float().numpy() for quantity in quantities} for of_row in read]


@torch.no_grad()
def row_values(
    model: nn.Module,
    rows: Sequence[Tokens],
    wanted: Sequence[Observable],
    *,
    batch_size: int,
    vocab_rows: int | None = None,
    name: str = "",
    original: Original | None = None,
) -> list[dict[Observable, Tensor]]:
    """What is wanted at each row's answer positions, [n] or [n, H], on the CPU, in the rows' order: one forward a batch.

    `original`: for quantities that read the reference's logits.
    """
    device = next(model.parameters()).device
    found: list[dict[Observable, Tensor]] = [{}] * len(rows)
    batches = list(by_length([len(row.input_ids) for row in rows], batch_size))
    for indices in progress(batches, f"likelihoods, {name}", total=len(batches)) if name else batches:
        batch = pad_tokens([rows[index] for index in indices], pad_id=0).to(device)
        values = observe(
            model,
            {"forget": batch},
            {"forget": wanted},
            vocab_rows=vocab_rows,
            reference=None if original is None else {"forget": _stored(original, [rows[i] for i in indices], device)},
            reference_head=None if original is None else original.head,
        )["forget"]
        lengths = [rows[index].answer_length for index in indices]
        parts = {quantity: torch.split(value.cpu(), lengths) for quantity, value in values.items()}
        for place, index in enumerate(indices):
            found[index] = {quantity: parts[quantity][place] for quantity in parts}
    return found


def _stored(original: Original, rows: Sequence[Tokens], device: torch.device) -> dict[Observable, Tensor]:
    return {HiddenState(): torch.cat([original.hidden[row] for row in rows]).to(device)}


def _mean(values: ArrayLike) -> float:
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()) if len(array) else math.nan
