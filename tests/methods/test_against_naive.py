"""Losses and gradients of all methods against the naive ones; what may not change them; what they do to a model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny_models
from d2unlearn.data.batching import pad_tokens
from d2unlearn.head import head_of
from d2unlearn.methods import METHODS, Method, batch_loss, reference_batch_values
from d2unlearn.observation import observe, observed
from d2unlearn.schema import Role, Tokens

from .naive import CASES, Scene

ROWS: dict[Role, list[Tokens]] = {
    "forget": tiny_models.rows(1, 4),
    "retain": tiny_models.rows(2, 4),
    "alternate": tiny_models.rows(3, 4),
    "retain_alternate": tiny_models.rows(4, 4),
}
NAMES = list(CASES)


@pytest.fixture(scope="module")
def reference() -> nn.Module:
    return tiny_models.llama().double()


@pytest.fixture
def model(reference: nn.Module) -> nn.Module:
    """The reference, a little moved."""
    moved = copy.deepcopy(reference)
    generator = torch.Generator().manual_seed(1)
    for parameter in moved.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return moved


def method_of(name: str) -> Method:
    key, parameters, _ = CASES[name]
    return METHODS[key](**parameters)


def batches(rows: Mapping[Role, list[Tokens]] = ROWS, *, width: int | None = None) -> dict[str, Any]:
    return {role: vars(pad_tokens(each, pad_id=0, width=width)) for role, each in rows.items()}


def gradients(loss: Tensor, model: nn.Module) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    named = zip(model.named_parameters(), found, strict=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in named}


def test_every_method_has_a_case() -> None:
    assert {key for key, _, _ in CASES.values()} | {"eua", "deep_eua"} == set(METHODS)


@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradient_are_the_naive_ones(name: str, model: nn.Module, reference: nn.Module) -> None:
    ours = batch_loss(method_of(name), model, batches(), reference=reference)
    naive = CASES[name][2](Scene(model, reference, ROWS))
    torch.testing.assert_close(ours, naive, rtol=1e-9, atol=1e-9)
    # transformers' norms round to float32, here and there over another shape
    torch.testing.assert_close(gradients(ours, model), gradients(naive, model), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_padding_and_the_order_of_rows_change_nothing(name: str, model: nn.Module, reference: nn.Module) -> None:
    method = method_of(name)
    plain = batch_loss(method, model, batches(), reference=reference)
    turned: dict[Role, list[Tokens]] = {role: each[::-1] for role, each in ROWS.items()}
    padded = batch_loss(method, model, batches(turned, width=40), reference=reference)
    torch.testing.assert_close(padded, plain, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_the_parts_of_an_effective_batch_add_up_to_it(name: str, model: nn.Module, reference: nn.Module) -> None:
    """One row and three rows, each told the totals of all four, give the loss of the four."""
    method = method_of(name).for_model(model)
    whole = batch_loss(method, model, batches(), reference=reference)
    totals = {
        role: observed(pad_tokens(ROWS[role], pad_id=0), {}, {}, positions=needs.positions)
        for role, needs in method.needs.items()
    }
    parts = []
    for part in (slice(0, 1), slice(1, 4)):
        cut = {role: pad_tokens(ROWS[role][part], pad_id=0) for role in method.needs}
        stored = reference_batch_values(method, reference, cut)
        policy = observe(
            model,
            cut,
            {role: needs.policy for role, needs in method.needs.items()},
            positions={role: needs.positions for role, needs in method.needs.items()},
            reference=stored,
            reference_head=head_of(reference),
        )
        seen = {
            role: observed(
                cut[role],
                policy[role],
                stored[role],
                positions=needs.positions,
                total_positions=totals[role].total_positions,
                total_rows=totals[role].total_rows,
            )
            for role, needs in method.needs.items()
        }
        parts.append(method.loss(seen))
    torch.testing.assert_close(sum(parts), whole, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_without_answers_costs_nothing(name: str, model: nn.Module, reference: nn.Module) -> None:
    silent = {role: [Tokens("x", row.input_ids, (False,) * len(row.input_ids)) for row in each] for role, each in ROWS.items()}
    loss = batch_loss(method_of(name), model, batches(silent), reference=reference)
    assert loss.item() == 0
    assert not any(gradient.any() for gradient in gradients(loss, model).values())


@pytest.mark.parametrize("name", NAMES)
def test_three_steps_lower_the_loss_and_move_every_trainable_parameter(
    name: str, model: nn.Module, reference: nn.Module
) -> None:
    """CE-U's loss follows a distribution that moves with the model: what falls is the likelihood of the answers."""
    method = method_of(name).for_model(model)
    falling = METHODS["gradient_ascent"]() if name == "ce_u" else method
    trained = [(n, p) for n, p in model.named_parameters() if method.trains(n)]
    before = {n: p.detach().clone() for n, p in trained}
    optimizer = torch.optim.SGD([p for _, p in trained], lr=1e-3)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        losses.append(batch_loss(falling, model, batches(), reference=reference).item())
        batch_loss(method, model, batches(), reference=reference).backward()
        optimizer.step()
    assert losses == sorted(losses, reverse=True)
    assert losses[3] < losses[0]
    assert [n for n, p in trained if torch.equal(p, before[n])] == []


@pytest.mark.parametrize("name", ["gradient difference, KL", "undial"])
def test_the_reference_convention_lets_padding_change_the_loss(name: str, model: nn.Module, reference: nn.Module) -> None:
    """The mistake that the default mends, so that it is known to be there."""
    key, parameters, _ = CASES[name]
    method = METHODS[key](**parameters, convention="open-unlearning")
    plain = batch_loss(method, model, batches(), reference=reference)
    padded = batch_loss(method, model, batches(width=40), reference=reference)
    assert abs(padded.item() - plain.item()) > 0.01 * abs(plain.item())
