"""Padding: masks come from lengths, so that a pad id that is also a token changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

import tiny_models
from d2unlearn.data.batching import by_length, by_room, pad_left, pad_tokens, truncate, until_end
from d2unlearn.likelihood import IGNORE
from d2unlearn.schema import Tokens

SHORT = Tokens("short", (7, 8), (False, True))
LONG = Tokens("long", (5, 7, 7, 9), (False, True, True, False))


def test_rows_are_padded_on_the_right_and_labels_are_the_answer() -> None:
    batch = pad_tokens([SHORT, LONG], pad_id=3)
    assert batch.input_ids.tolist() == [[7, 8, 3, 3], [5, 7, 7, 9]]
    assert batch.attention_mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch.labels.tolist() == [[IGNORE, 8, IGNORE, IGNORE], [IGNORE, 7, 7, IGNORE]]
    assert {batch.input_ids.dtype, batch.attention_mask.dtype, batch.labels.dtype} == {torch.int64}


def test_prompts_are_padded_on_the_left() -> None:
    ids, mask = pad_left([[7, 8, 9], [5], []], pad_id=3)
    assert ids.tolist() == [[7, 8, 9], [3, 3, 5], [3, 3, 3]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize("pad_id", [0, 7, 8])
def test_masks_come_from_lengths_and_never_from_the_pad_id(pad_id: int) -> None:
    """With a pad id that stands in prompts and answers, masks and labels are what they are with any other."""
    batch = pad_tokens([SHORT, LONG], pad_id)
    assert batch.attention_mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch.labels.tolist() == [[IGNORE, 8, IGNORE, IGNORE], [IGNORE, 7, 7, IGNORE]]
    assert pad_left([[7, 8], [8]], pad_id)[1].tolist() == [[1, 1], [0, 1]]


@torch.no_grad()
def test_a_model_s_answer_does_not_depend_on_padding_or_its_id() -> None:
    model = tiny_models.llama()
    rows = tiny_models.rows(0, 4)
    alone = []
    for row in rows:
        batch = pad_tokens([row], 0)
        alone.append(nll_of(model, batch.input_ids, batch.attention_mask, batch.labels))
    for pad_id in (0, 2, rows[0].input_ids[-1]):
        batch = pad_tokens(rows, pad_id)
        for index, expected in enumerate(alone):
            found = nll_of(model, *(each[index : index + 1] for each in (batch.input_ids, batch.attention_mask, batch.labels)))
            torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


def nll_of(model: torch.nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """By hand: logits of position t against the token at t + 1, where that is an answer token."""
    logits = model(input_ids=input_ids, attention_mask=attention_mask).logits
    kept = labels[:, 1:] != IGNORE
    return cross_entropy(logits[:, :-1][kept], labels[:, 1:][kept], reduction="none")


def test_truncation_keeps_ids_and_mask_together() -> None:
    assert truncate(LONG, 2) == Tokens("long", (5, 7), (False, True))
    assert truncate(LONG, 99) == LONG
    assert truncate(LONG, 1).answer_length == 0


def test_an_answer_s_ids_reach_to_the_first_that_ends_it() -> None:
    assert until_end([5, 2, 6, 2], [2, 9]) == [5, 2]
    assert until_end([5, 6], [2]) == [5, 6]
    assert until_end([2], [2]) == [2]
    assert until_end([], [2]) == until_end((), ()) == []


def test_batches_are_of_similar_length_longest_first_and_miss_nothing() -> None:
    lengths = [3, 9, 1, 9, 4]
    assert list(by_length(lengths, 2)) == [[1, 3], [4, 0], [2]]
    assert list(by_length([], 2)) == []
    assert list(by_length([5, 5], 8)) == [[0, 1]]


def test_prompts_short_of_room_are_batched_by_their_own_length() -> None:
    """Context 10, answers of 4: lengths 7 and 9 leave 3 and 1; the others go as without a limit."""
    lengths = [2, 7, 9, 6, 7, 5, 7]
    assert list(by_room(lengths, 2, 4, 10)) == [([2], 1), ([1, 4], 3), ([6], 3), ([3, 5], 4), ([0], 4)]
    assert list(by_room(lengths, 2, 4, None)) == [(batch, 4) for batch in by_length(lengths, 2)]
