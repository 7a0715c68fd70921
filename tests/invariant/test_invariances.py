"""What may not change a loss or a score, from tokens to gradients: padding, order, a constant added to all logits."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny_models
from d2unlearn.data.batching import pad_tokens
from d2unlearn.head import Head, head_values
from d2unlearn.methods import EUA, batch_loss
from d2unlearn.observation import Batch, observe
from d2unlearn.quantities import (
    CentredEnergy,
    Correct,
    Entropy,
    KlFromUniform,
    LogSumExp,
    MaxLogit,
    MeanLogit,
    Nll,
    Observable,
    Quantity,
)
from d2unlearn.schema import Role, Tokens

ROWS: dict[Role, list[Tokens]] = {"forget": tiny_models.rows(1, 5), "retain": tiny_models.rows(2, 5)}
EVERY: tuple[Quantity, ...] = (Nll(), LogSumExp(), LogSumExp(2.0), CentredEnergy(), Entropy(), Correct())
METHOD = EUA(gamma=1.0)
FAMILIES = pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "cohere"])


def pair(family: str) -> tuple[nn.Module, nn.Module]:
    """A model in training and its reference, in float64."""
    reference = tiny_models.FAMILIES[family]().double()
    model = copy.deepcopy(reference)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(0.7)
    return model, reference


def loss_and_gradients(family: str, batches: Mapping[Role, Batch]) -> tuple[Tensor, tuple[Tensor, ...]]:
    model, reference = pair(family)
    fields: dict[str, Mapping[str, Any]] = {role: vars(batch) for role, batch in batches.items()}
    loss = batch_loss(METHOD, model, fields, reference=reference)
    return loss.detach(), torch.autograd.grad(loss, list(model.parameters()))


def batched(rows: Mapping[Role, Sequence[Tokens]], width: int | None = None) -> dict[Role, Batch]:
    return {role: pad_tokens(each, pad_id=0, width=width) for role, each in rows.items()}


def assert_same(one: object, other: object) -> None:
    """To what transformers' norms, which round to float32, leave of float64."""
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@FAMILIES
def test_padding_changes_neither_loss_nor_gradients(family: str) -> None:
    plain = loss_and_gradients(family, batched(ROWS))
    assert_same(loss_and_gradients(family, batched(ROWS, width=40)), plain)


@FAMILIES
def test_what_stands_in_the_padding_does_not_matter(family: str) -> None:
    plain = batched(ROWS, width=40)
    filled = {
        role: Batch(torch.where(batch.attention_mask == 0, 77, batch.input_ids), batch.attention_mask, batch.labels)
        for role, batch in plain.items()
    }
    assert_same(loss_and_gradients(family, filled), loss_and_gradients(family, plain))


@FAMILIES
def test_the_order_of_rows_changes_neither_loss_nor_gradients(family: str) -> None:
    order = torch.randperm(5, generator=torch.Generator().manual_seed(1)).tolist()
    mixed = {role: [each[place] for place in order] for role, each in ROWS.items()}
    assert_same(loss_and_gradients(family, batched(mixed)), loss_and_gradients(family, batched(ROWS)))


@FAMILIES
def test_scores_follow_their_rows(family: str) -> None:
    """A row's scores are the same alone, in company, padded, and wherever it stands."""
    model = tiny_models.FAMILIES[family]().double()
    wanted: dict[Role, Sequence[Observable]] = {"forget": EVERY}

    def scores(rows: Sequence[Tokens], width: int | None = None) -> list[dict[Observable, Tensor]]:
        found = observe(model, {"forget": pad_tokens(rows, pad_id=0, width=width)}, wanted)["forget"]
        lengths = [row.answer_length for row in rows]
        parts = {quantity: values.detach().split(lengths) for quantity, values in found.items()}
        return [{quantity: each[place] for quantity, each in parts.items()} for place in range(len(rows))]

    together = scores(ROWS["forget"])
    for place, row in enumerate(ROWS["forget"]):
        assert_same(scores([row])[0], together[place])
    assert_same(scores(ROWS["forget"][::-1], width=50)[::-1], together)


@FAMILIES
def test_a_row_said_twice_changes_no_mean(family: str) -> None:
    twice = {role: [*each, *each] for role, each in ROWS.items()}
    assert_same(loss_and_gradients(family, batched(twice)), loss_and_gradients(family, batched(ROWS)))


def test_answers_of_other_rows_do_not_reach_a_row() -> None:
    """The gradient of one row's energies with respect to the embedded tokens of another is zero."""
    model = tiny_models.llama().double()
    batch = pad_tokens(ROWS["forget"], pad_id=0)
    embedded: list[Tensor] = []
    handle = model.get_input_embeddings().register_forward_hook(lambda module, args, output: embedded.append(output))
    values = observe(model, {"forget": batch}, {"forget": [LogSumExp()]})["forget"][LogSumExp()]
    handle.remove()
    first = ROWS["forget"][0].answer_length
    (gradient,) = torch.autograd.grad(values[:first].sum(), embedded[0])
    assert gradient[1:].abs().max().item() == 0
    assert gradient[0].abs().max().item() > 1e-3


# -- a constant added to all logits ---------------------------------------------------------------------------------------

MOVES = {LogSumExp(): 1.0, LogSumExp(2.0): 0.5, MeanLogit(): 1.0, MaxLogit(): 1.0}
"""What a constant added to every logit does to a quantity, as a multiple of it; nothing to all others."""
KEPT = (Nll(), CentredEnergy(), CentredEnergy(2.0), Entropy(), KlFromUniform(), Correct())


@pytest.mark.parametrize("shift", [-30.0, 4.0])
def test_the_free_energy_can_be_moved_without_changing_one_probability(shift: float) -> None:
    """Through the head, by its bias: the energy moves by minus the constant, all that softmax sees stays, gradients too."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((9, 6), (40, 6), (40,)))
    targets = torch.randint(40, (9,), generator=generator)

    def at(constant: float) -> tuple[dict[Quantity, Tensor], tuple[Tensor, ...]]:
        leaves = [leaf.clone().requires_grad_() for leaf in (hidden, weight)]
        found = head_values(leaves[0], Head(leaves[1], bias + constant), targets, [*MOVES, *KEPT], chunk_logits=160)
        total = torch.stack([value.sum() for value in found.values() if value.requires_grad]).sum()
        return {q: v.detach() for q, v in found.items()}, torch.autograd.grad(total, leaves)

    (before, slopes), (after, slopes_after) = at(0.0), at(shift)
    for quantity in before:
        torch.testing.assert_close(after[quantity], before[quantity] + shift * MOVES.get(quantity, 0.0), msg=repr(quantity))
    torch.testing.assert_close(slopes_after, slopes)


def test_a_forget_hinge_is_satisfied_by_a_constant_that_forgets_nothing() -> None:
    """Why no report shows energy alone: logits lower by 30 leave every probability and no hinge."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(9, 6, generator=generator), 2 * torch.randn(40, 6, generator=generator)
    targets = torch.randint(40, (9,), generator=generator)
    known, lowered = (
        head_values(hidden, Head(weight, torch.full((40,), constant)), targets, [Nll(), LogSumExp()])
        for constant in (0.0, -30.0)
    )
    bound = -torch.tensor(36.0).log()
    assert bool((-known[LogSumExp()] < bound).any())
    assert bool((-lowered[LogSumExp()] > bound).all())
    torch.testing.assert_close(lowered[Nll()], known[Nll()], rtol=1e-4, atol=1e-4)
