"""The label shift: which logits predict which answer token. Every use of it in the package goes through this file.

The logits at position t predict the token at t + 1. So an answer token at position t >= 1 is scored by the hidden state at
t - 1, and the first answer token by the last prompt position. Labels are token ids, or `IGNORE` for a token that is no part
of the answer.
"""

from __future__ import annotations

import torch
from torch import Tensor

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
