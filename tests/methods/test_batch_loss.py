"""`batch_loss`: a method on one batch given as lists or tensors, with a live reference that is left alone."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

import tiny_models
from d2unlearn.data.batching import pad_tokens
from d2unlearn.methods import EUA, METHODS, batch_loss
from d2unlearn.observation import Batch

TENSORS: dict[str, Mapping[str, Any]] = {
    "forget": vars(pad_tokens(tiny_models.rows(1, 3), pad_id=0)),
    "retain": vars(pad_tokens(tiny_models.rows(2, 3), pad_id=0)),
}
EUA_LOUD = EUA(gamma=1.0)


@pytest.fixture(scope="module")
def reference() -> nn.Module:
    return tiny_models.gpt2(seed=1)


def test_lists_and_tensors_are_one(reference: nn.Module) -> None:
    model = tiny_models.gpt2()
    lists = {role: {key: value.tolist() for key, value in each.items()} for role, each in TENSORS.items()}
    found = batch_loss(EUA_LOUD, model, lists, reference=reference)
    assert torch.equal(found, batch_loss(EUA_LOUD, model, TENSORS, reference=reference))
    assert found.shape == ()


def test_roles_and_fields_that_a_method_does_not_read_are_passed_over(reference: nn.Module) -> None:
    model = tiny_models.gpt2()
    plain = batch_loss(EUA_LOUD, model, TENSORS, reference=reference)
    more: dict[str, Any] = {"alternate": {"input_ids": "none of these"}, **TENSORS}
    more["forget"] = {**more["forget"], "index": [1, 2, 3]}
    assert torch.equal(batch_loss(EUA_LOUD, model, more, reference=reference), plain)
    turned = dict(reversed(TENSORS.items()))
    torch.testing.assert_close(batch_loss(EUA_LOUD, model, turned, reference=reference), plain)


def test_the_reference_is_left_as_it_was(reference: nn.Module) -> None:
    before = copy.deepcopy(reference.state_dict())
    batch_loss(EUA_LOUD, tiny_models.gpt2(), TENSORS, reference=reference).backward()
    assert all(p.grad is None for p in reference.parameters())
    torch.testing.assert_close(reference.state_dict(), before, rtol=0, atol=0)


def test_a_model_may_be_its_own_reference() -> None:
    """The reference's side is a constant all the same."""
    model = tiny_models.gpt2()
    batch_loss(EUA_LOUD, model, TENSORS, reference=model).backward()
    own = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    batch_loss(EUA_LOUD, model, TENSORS, reference=copy.deepcopy(model)).backward()
    torch.testing.assert_close({name: p.grad for name, p in model.named_parameters()}, own)


def test_models_run_in_the_mode_that_they_are_in(reference: nn.Module) -> None:
    """GPT-2's dropout is drawn in training mode, and not in evaluation."""
    model = tiny_models.gpt2(dropout=0.5)
    quiet = [batch_loss(EUA_LOUD, model, TENSORS, reference=reference).item() for _ in range(2)]
    assert quiet[0] == quiet[1]
    model.train()
    torch.manual_seed(0)
    loud = [batch_loss(EUA_LOUD, model, TENSORS, reference=reference).item() for _ in range(2)]
    assert loud[0] != loud[1] != quiet[0]
    assert model.training
    assert not reference.training


def test_each_role_may_be_as_long_as_it_likes(reference: nn.Module) -> None:
    model = tiny_models.gpt2().double()
    short, long = (pad_tokens(tiny_models.rows(seed, 2), pad_id=0, width=width) for seed, width in ((1, 24), (2, 60)))
    other = copy.deepcopy(reference).double()
    one: dict[str, Mapping[str, Any]] = {"forget": vars(short), "retain": vars(long)}
    wide: dict[str, Mapping[str, Any]] = {"forget": vars(widened(short, 60)), "retain": vars(long)}
    torch.testing.assert_close(
        batch_loss(EUA_LOUD, model, one, reference=other), batch_loss(EUA_LOUD, model, wide, reference=other)
    )


def widened(batch: Batch, width: int) -> Batch:
    def padded(values: torch.Tensor, fill: int) -> torch.Tensor:
        return nn.functional.pad(values, (0, width - values.shape[1]), value=fill)

    return Batch(padded(batch.input_ids, 7), padded(batch.attention_mask, 0), padded(batch.labels, -100))


def test_a_method_is_named_as_the_command_line_names_it() -> None:
    assert METHODS["eua"] is EUA
