"""The label shift: which logits predict which answer token. Every use of it in the package goes through this file.

The logits at position t predict the token at t + 1. So an answer token at position t >= 1 is scored by the hidden state at
t - 1, and the first answer token by the last prompt position. Labels are token ids, or `IGNORE` for a token that is no part
of the answer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from d2unlearn.energy import at_least_float32, logsumexp_parts

IGNORE = -100


def predicting_mask(labels: Tensor) -> Tensor:
    """True at the positions whose *next* token is an answer token. labels: [B, T]. Returns bool [B, T]."""
    mask = torch.zeros_like(labels, dtype=torch.bool)
    mask[:, :-1] = labels[:, 1:] != IGNORE
    return mask


def next_labels(labels: Tensor) -> Tensor:
    """What each position should predict; `IGNORE` where no answer token follows. [B, T] -> [B, T] int64."""
    shifted = torch.full_like(labels, IGNORE)
    shifted[:, :-1] = labels[:, 1:]
    return shifted


def answer_targets(labels: Tensor) -> Tensor:
    """The answer tokens that are predicted, row by row, in the order of `predicting_mask`. [B, T] -> [N] int64."""
    return next_labels(labels)[predicting_mask(labels)]


def answer_rows(labels: Tensor) -> Tensor:
    """For each predicted answer token the row that it belongs to. [B, T] -> [N] int64."""
    return predicting_mask(labels).nonzero(as_tuple=True)[0]


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of each target in float32. logits: [..., V], targets: [...] int64. Returns [...], nats."""
    logits = at_least_float32(logits)
    largest, excess = logsumexp_parts(logits)
    return largest - logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) + excess
