"""Averaging: half of a fine-tune and half of the model, by hand; the model stays as it is."""

from __future__ import annotations

import copy

import pytest
import torch

import tiny_models
from d2unlearn.attacks.averaging import Averaging, average_with_fine_tune, fine_tuned
from d2unlearn.attacks.reading import NotShownError
from d2unlearn.data.batching import pad_tokens
from d2unlearn.errors import ConfigError
from d2unlearn.fine_tuning import batch_order
from d2unlearn.models import state_hash

ROWS = tiny_models.rows(4, 10)
AVERAGING = Averaging(steps=3, learning_rate=3e-3, batch_size=4, share=0.25)


def test_the_fine_tune_is_adamw_on_the_answers_of_each_batch() -> None:
    model = tiny_models.llama()
    by_hand = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=3e-3)
    for indices in batch_order(10, steps=3, batch_size=4, seed=5):
        batch = pad_tokens([ROWS[index] for index in indices], pad_id=0)
        log_p = torch.log_softmax(tiny_models.full_logits(by_hand, batch)[:, :-1], dim=-1)
        targets = batch.labels[:, 1:]
        picked = -log_p.gather(2, targets.clamp(min=0).unsqueeze(2)).squeeze(2)[targets >= 0]
        optimizer.zero_grad()
        picked.mean().backward()
        optimizer.step()
    tuned = fine_tuned(model, ROWS, AVERAGING, seed=5)
    for ours, theirs in zip(tuned.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.detach(), atol=2e-5, rtol=2e-4)


def test_the_average_lies_between_model_and_fine_tune_where_the_share_says() -> None:
    model = tiny_models.llama(tied=True)
    before = state_hash(model)
    made, tuned = average_with_fine_tune(model, ROWS, AVERAGING, seed=5), fine_tuned(model, ROWS, AVERAGING, seed=5)
    assert state_hash(model) == before
    for mixed, own, fine in zip(made.parameters(), model.parameters(), tuned.parameters(), strict=True):
        assert float((fine - own.detach()).abs().max()) > 1e-3
        torch.testing.assert_close(mixed, 0.75 * own.detach() + 0.25 * fine)
    assert made.get_output_embeddings().weight is made.get_input_embeddings().weight
    assert state_hash(average_with_fine_tune(model, ROWS, AVERAGING, seed=5)) == state_hash(made)
    assert state_hash(average_with_fine_tune(model, ROWS, AVERAGING, seed=6)) != state_hash(made)


def test_too_few_rows_are_not_shown_and_impossible_budgets_said() -> None:
    with pytest.raises(NotShownError, match="3 retained rows are too few"):
        average_with_fine_tune(tiny_models.llama(), ROWS[:3], AVERAGING, seed=0)
    with pytest.raises(ConfigError, match="share"):
        Averaging(share=0)
    with pytest.raises(ConfigError, match="steps"):
        Averaging(steps=0)
