"""The quantities on one chunk of logits: values and gradients against their formulas, bounds, and what a shift does."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import Tensor

from d2unlearn import quantities
from d2unlearn.energy import centred_energy, free_energy, reference_margins
from d2unlearn.errors import ConfigError
from d2unlearn.quantities import (
    BottomLogSumExp,
    CentredEnergy,
    Chunk,
    Correct,
    Entropy,
    HiddenState,
    KlFromReference,
    LogSumExp,
    MaxLogit,
    MeanLogit,
    Nll,
    Quantity,
    TopLogSumExp,
)
from reference import dense

N, V = 12, 40
UNIFORM = torch.zeros(1, V, dtype=torch.float64)
CERTAIN = torch.cat([torch.full((1, 1), 800.0), torch.zeros(1, V - 1)], dim=1).double()


def random_chunk(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [N, V], targets [N], the reference's logits [N, V]. A third of the targets is the most likely token."""
    generator = torch.Generator().manual_seed(seed)
    logits, reference = 3 * torch.randn(2, N, V, generator=generator, dtype=torch.float64)
    targets = torch.randint(V, (N,), generator=generator)
    targets[: N // 3] = logits[: N // 3].argmax(-1)
    return logits, targets, reference


def value(quantity: Quantity, logits: Tensor, targets: Tensor | None = None, reference: Tensor | None = None) -> Tensor:
    return quantity.of(Chunk(logits, torch.zeros(len(logits), dtype=torch.long) if targets is None else targets, reference))


def test_every_quantity_has_a_formula_to_be_held_against() -> None:
    defined = {each for each in vars(quantities).values() if isinstance(each, type) and issubclass(each, Quantity)}
    assert {type(quantity) for quantity in dense.QUANTITIES} == defined - {Quantity}


@pytest.mark.parametrize("quantity", dense.QUANTITIES, ids=repr)
def test_value_and_gradient_are_those_of_the_formula(quantity: Quantity) -> None:
    logits, targets, reference = random_chunk()
    ours, naive = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    found = value(quantity, ours, targets, reference)
    expected = dense.QUANTITIES[quantity](naive, targets, reference)
    torch.testing.assert_close(found, expected)
    if quantity in dense.WITHOUT_GRADIENT:
        assert not found.requires_grad
        return
    weights = torch.linspace(-1, 2, N, dtype=torch.float64)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, naive.grad)


@pytest.mark.parametrize("quantity", dense.QUANTITIES, ids=repr)
def test_quantities_of_one_chunk_do_not_disturb_each_other(quantity: Quantity) -> None:
    logits, targets, reference = random_chunk()
    alone = value(quantity, logits, targets, reference)
    chunk = Chunk(logits, targets, reference)
    for other in dense.QUANTITIES:
        other.of(chunk)
    assert torch.equal(quantity.of(chunk), alone)
    assert torch.equal(chunk.logits, random_chunk()[0])


SHIFTS: dict[type[Quantity], float] = {LogSumExp: 1.0, MeanLogit: 1.0, MaxLogit: 1.0}
"""By how much of a constant that is added to all logits a quantity moves (of a constant over T, where it has one)."""


@pytest.mark.parametrize(
    "quantity", [q for q in dense.QUANTITIES if not isinstance(q, TopLogSumExp | BottomLogSumExp)], ids=repr
)
def test_a_constant_moves_energies_and_logits_and_nothing_else(quantity: Quantity) -> None:
    logits, targets, reference = random_chunk()
    moved = -7.0 * SHIFTS.get(type(quantity), 0.0) / getattr(quantity, "temperature", 1.0)
    before, after = (value(quantity, z, targets, reference) for z in (logits, logits - 7.0))
    torch.testing.assert_close(after, before + moved)


def test_the_quantities_of_energy_are_the_energies() -> None:
    logits, _, _ = random_chunk()
    m_in, m_out = reference_margins(logits, 0.3, 2.0)
    assert torch.equal(value(LogSumExp(2.0), logits), -free_energy(logits, 2.0) / 2.0)
    torch.testing.assert_close(value(LogSumExp(), logits), -free_energy(logits), rtol=1e-15, atol=1e-15)
    assert torch.equal(value(CentredEnergy(2.0), logits), centred_energy(logits, 2.0))
    assert torch.equal(value(TopLogSumExp(0.3, 2.0), logits), -m_in)
    assert torch.equal(value(BottomLogSumExp(0.3, 2.0), logits), -m_out)


def test_entropy_lies_between_nothing_and_log_v() -> None:
    assert value(Entropy(), UNIFORM).item() == pytest.approx(math.log(V))
    assert value(Entropy(), CERTAIN).item() == 0
    half = torch.tensor([[5.0, 5.0, -800.0]])
    assert value(Entropy(), half).item() == pytest.approx(math.log(2))


def test_the_divergence_from_the_reference_by_hand() -> None:
    """The reference at 1/2, 1/2 and the policy at 1/4, 3/4: (ln 2 + ln 2/3) / 2, and another number the other way round."""
    policy = torch.tensor([[0.0, math.log(3)]], dtype=torch.float64)
    even = torch.zeros(1, 2, dtype=torch.float64)
    assert value(KlFromReference(), policy, None, even).item() == pytest.approx((math.log(2) + math.log(2 / 3)) / 2)
    assert value(KlFromReference(), even, None, policy).item() == pytest.approx(math.log(1 / 2) / 4 + 3 * math.log(3 / 2) / 4)
    assert value(KlFromReference(), policy, None, policy + 5).item() == pytest.approx(0, abs=1e-12)


def test_only_the_most_likely_token_is_correct() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0]])
    assert value(Correct(), logits, torch.tensor([1, 2])).tolist() == [1.0, 0.0]


def test_a_single_token_vocabulary_is_always_sure() -> None:
    logits = torch.tensor([[3.0]])
    assert [value(q, logits).item() for q in (Nll(), LogSumExp(), Entropy(), Correct())] == [0.0, 3.0, 0.0, 1.0]


@pytest.mark.parametrize("quantity", dense.QUANTITIES, ids=repr)
def test_extreme_logits_give_finite_numbers(quantity: Quantity) -> None:
    logits, targets, reference = random_chunk()
    for scale in (1e4, -1e4):
        leaf = (scale * logits).float().requires_grad_()
        found = value(quantity, leaf, targets, (reference * scale).float())
        assert bool(found.isfinite().all())
        if found.requires_grad:
            (gradient,) = torch.autograd.grad(found.sum(), leaf)
            assert bool(gradient.isfinite().all())


def test_the_references_logits_have_to_be_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"declare HiddenState\(\) of the reference too"):
        value(KlFromReference(), UNIFORM)


@pytest.mark.parametrize("quantity", [*dense.QUANTITIES, HiddenState(), HiddenState("model.layers.1")], ids=repr)
def test_what_is_equal_is_one_key_in_memory_and_on_disk(quantity: Quantity | HiddenState) -> None:
    again = type(quantity)(**vars(quantity))
    assert again == quantity
    assert hash(again) == hash(quantity)
    assert repr(again) == repr(quantity)
    with pytest.raises(FrozenInstanceError):
        again.anything = 1


def test_different_parameters_are_different_keys() -> None:
    every = list(dense.QUANTITIES)
    assert len({repr(quantity) for quantity in every}) == len(set(every)) == len(every)
    assert repr(TopLogSumExp(0.1)) != repr(TopLogSumExp(0.1, zero_fill=False)) != repr(BottomLogSumExp(0.1, zero_fill=False))
