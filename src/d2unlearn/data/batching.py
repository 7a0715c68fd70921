"""Rows of token ids to tensors. The attention mask comes from lengths, never from comparing ids with the pad id."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from d2unlearn.likelihood import IGNORE
from d2unlearn.observation import Batch
from d2unlearn.schema import Tokens


def pad_tokens(rows: Sequence[Tokens], pad_id: int, *, width: int | None = None) -> Batch:
    """Right-padded batch of rendered rows; labels are `IGNORE` outside the answer. Each tensor: [B, T].

    T is the longest row's length, or `width`.
    """
    width = width or max(len(row.input_ids) for row in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORE)
    for index, row in enumerate(rows):
        length = len(row.input_ids)
        ids[index, :length] = torch.tensor(row.input_ids)
        mask[index, :length] = 1
        answer = torch.tensor(row.answer_mask, dtype=torch.bool)
        labels[index, :length][answer] = ids[index, :length][answer]
    return Batch(ids, mask, labels)


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


def until_end(ids: Sequence[int], ends: Sequence[int]) -> list[int]:
    """An answer's ids up to the first that ends it, that one included; all of them where none does."""
    end = next((index for index, token in enumerate(ids) if token in ends), len(ids))
    return list(ids[: end + 1])


def truncate(tokens: Tokens, max_length: int) -> Tokens:
    """The first `max_length` tokens."""
    whole = len(tokens.input_ids) <= max_length
    return Tokens(tokens.example_id, tokens.input_ids[:max_length], tokens.answer_mask[:max_length], tokens.ends and whole)


def by_length(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first, so that memory runs out at once if at all."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def by_tokens(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, shortest first: rows times longest row is at most `budget` tokens, or one row."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        if batch and (len(batch) + 1) * lengths[index] > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def by_room(lengths: Sequence[int], batch_size: int, most: int, context: int | None) -> Iterator[tuple[list[int], int]]:
    """(indices of a batch as of `by_length`, the tokens that its answers may have): `most`, or what the context leaves.

    Prompts that leave less than `most` share a batch only with those of their own length, so that none is cut short by another,
    or run past the context's end once it is done itself. lengths: of prompts that fit.
    """
    limit = sys.maxsize if context is None else context
    for length in sorted({length for length in lengths if length + most > limit}, reverse=True):
        same = [index for index, each in enumerate(lengths) if each == length]
        yield from ((same[start : start + batch_size], limit - length) for start in range(0, len(same), batch_size))
    rest = [index for index, each in enumerate(lengths) if each + most <= limit]
    for batch in by_length([lengths[index] for index in rest], batch_size):
        yield [rest[place] for place in batch], most
