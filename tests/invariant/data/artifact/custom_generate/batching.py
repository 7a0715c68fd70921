# Made from d2unlearn/data/batching.py by d2unlearn 0.1.0. Calibration writes it again.
from __future__ import annotations

from collections.abc import Sequence
import torch
from torch import Tensor


def pad_left(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Left-padded prompts for generation: (input_ids, attention_mask), each [B, T]."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, prompt in enumerate(prompts):
        if prompt:
            ids[index, width - len(prompt) :] = torch.tensor(prompt)
            mask[index, width - len(prompt) :] = 1
    return ids, mask
