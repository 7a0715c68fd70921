"""The chunked head against dense autograd: values and gradients, chunks, memory, and an error budget in low precision."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import tiny_models
from d2unlearn.errors import ConfigError, ModelError
from d2unlearn.head import Head, LogitTransform, head_of, head_values, logit_transform
from d2unlearn.quantities import Chunk, Correct, Entropy, KlFromReference, LogSumExp, MeanLogit, Nll, Quantity
from reference import dense
from reference.recorder import MadeTensors

N, H, V = 23, 6, 40
TRANSFORMS = {
    "plain": LogitTransform(),
    "scaled": LogitTransform(scale=0.25),
    "capped": LogitTransform(softcap=2.0),
    "scaled and capped": LogitTransform(scale=0.5, softcap=1.5),
}
ALL = tuple(dense.QUANTITIES)


@dataclass(frozen=True)
class Case:
    """hidden [N, H], weight [V, H], bias [V], targets [N], the reference's hidden states [N, H] and weight [V, H]."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    targets: Tensor
    reference_hidden: Tensor
    reference_weight: Tensor

    def leaves(self) -> list[Tensor]:
        return [leaf for leaf in (self.hidden, self.weight, self.bias) if leaf is not None]

    def fresh(self) -> Case:
        """The same numbers with gradients of their own."""
        bias = None if self.bias is None else self.bias.detach().clone().requires_grad_()
        hidden, weight = (leaf.detach().clone().requires_grad_() for leaf in (self.hidden, self.weight))
        return replace(self, hidden=hidden, weight=weight, bias=bias)


def random_case(seed: int = 0, *, n: int = N, width: int = H, vocabulary: int = V, bias: bool = True) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return Case(
        hidden=normal(n, width),
        weight=normal(vocabulary, width),
        bias=normal(vocabulary) if bias else None,
        targets=torch.randint(vocabulary, (n,), generator=generator),
        reference_hidden=normal(n, width),
        reference_weight=normal(vocabulary, width),
    ).fresh()


def ours(
    case: Case, wanted: Sequence[Quantity], transform: LogitTransform = TRANSFORMS["plain"], *, chunk: int = 7
) -> dict[Quantity, Tensor]:
    return head_values(
        case.hidden,
        Head(case.weight, case.bias, transform),
        case.targets,
        wanted,
        reference_hidden=case.reference_hidden,
        reference_head=Head(case.reference_weight, None, transform),
        chunk_logits=chunk * V,
    )


def naive(case: Case, wanted: Sequence[Quantity], transform: LogitTransform = TRANSFORMS["plain"]) -> dict[Quantity, Tensor]:
    steps = {"scale": transform.scale, "softcap": transform.softcap}
    logits = dense.logits_of(case.hidden, case.weight, case.bias, **steps)
    reference = dense.logits_of(case.reference_hidden, case.reference_weight, **steps)
    return {quantity: dense.QUANTITIES[quantity](logits, case.targets, reference) for quantity in wanted}


def mixed(values: dict[Quantity, Tensor]) -> Tensor:
    """A weighted sum, another weight for each quantity and position."""
    weights = torch.linspace(-1, 2, N, dtype=torch.float64)
    return torch.stack([(value * weights.roll(place)).sum() for place, value in enumerate(values.values())]).sum()


def assert_same(wanted: Sequence[Quantity], transform: LogitTransform = TRANSFORMS["plain"], *, bias: bool = True) -> None:
    """Values and the gradients of hidden states, weight and bias, to the last digits of float64."""
    mine, theirs = random_case(bias=bias), random_case(bias=bias)
    found, expected = ours(mine, wanted, transform), naive(theirs, wanted, transform)
    assert list(found) == list(wanted)
    torch.testing.assert_close(found, expected)
    mixed(found).backward()
    if any(value.requires_grad for value in expected.values()):
        mixed(expected).backward()
    for leaf, other in zip(mine.leaves(), theirs.leaves(), strict=True):
        torch.testing.assert_close(leaf.grad, torch.zeros_like(leaf) if other.grad is None else other.grad)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("quantity", ALL, ids=repr)
def test_a_quantity_alone_is_that_of_dense_logits(quantity: Quantity, transform: str) -> None:
    assert_same([quantity], TRANSFORMS[transform])


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_any_two_together_are_those_of_dense_logits(transform: str) -> None:
    for pair in combinations(ALL, 2):
        assert_same(pair, TRANSFORMS[transform])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_all_at_once_are_those_of_dense_logits(transform: str, bias: bool) -> None:
    assert_same(ALL, TRANSFORMS[transform], bias=bias)
    assert_same(ALL[::-1], TRANSFORMS[transform], bias=bias)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_gradients_are_the_slopes_of_the_values(transform: str) -> None:
    """By finite differences, which know nothing of autograd."""
    case = random_case(n=3, vocabulary=11)
    wanted = [Nll(), LogSumExp(), LogSumExp(2.0), Entropy()]

    def function(hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        head = Head(weight, bias, TRANSFORMS[transform])
        return tuple(head_values(hidden, head, case.targets, wanted, chunk_logits=22).values())

    assert torch.autograd.gradcheck(function, case.leaves())


class SummedLogit(Quantity):
    """Its gradient is one number a row, which autograd spreads over the vocabulary without memory of its own."""

    def of(self, chunk: Chunk) -> Tensor:
        return chunk.logits.sum(dim=-1)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("beside", [[], [Nll()], [Nll(), LogSumExp(2.0)], [MeanLogit()]], ids=repr)
def test_a_new_quantity_needs_nothing_but_its_formula(beside: list[Quantity], transform: str) -> None:
    summed = SummedLogit()
    mine, theirs = random_case(), random_case()
    wanted = [summed, *beside]
    steps = TRANSFORMS[transform]
    logits = dense.logits_of(theirs.hidden, theirs.weight, theirs.bias, scale=steps.scale, softcap=steps.softcap)
    expected = {summed: logits.sum(-1), **naive(theirs, beside, steps)}
    found = ours(mine, wanted, steps)
    torch.testing.assert_close(found, expected)
    mixed(found).backward()
    mixed(expected).backward()
    for leaf, other in zip(mine.leaves(), theirs.leaves(), strict=True):
        torch.testing.assert_close(leaf.grad, other.grad)


@pytest.mark.parametrize("chunk", [1, 2, 22, 23, 1000])
def test_the_size_of_a_chunk_changes_nothing(chunk: int) -> None:
    cases = [random_case(), random_case()]
    found = [ours(case, ALL, chunk=size) for case, size in zip(cases, (7, chunk), strict=True)]
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)
    for values in found:
        mixed(values).backward()
    for one, other in zip(cases[0].leaves(), cases[1].leaves(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-11, atol=1e-11)


def test_a_chunk_smaller_than_a_row_is_a_row() -> None:
    case = random_case()
    found = head_values(case.hidden, Head(case.weight, case.bias), case.targets, [Nll()], chunk_logits=1)
    torch.testing.assert_close(found[Nll()], naive(case, [Nll()])[Nll()])


@pytest.mark.parametrize("wanted", [ALL, [Nll(), LogSumExp()], [Correct()]], ids=len)
def test_no_positions_have_no_values_and_a_gradient_of_zero(wanted: Sequence[Quantity]) -> None:
    case = random_case(n=0)
    found = ours(case, wanted)
    assert [value.shape for value in found.values()] == [(0,)] * len(wanted)
    torch.stack([value.sum() for value in found.values()]).sum().backward()
    for leaf in case.leaves():
        torch.testing.assert_close(leaf.grad, torch.zeros_like(leaf))


def test_nothing_asked_for_is_nothing_computed() -> None:
    case = random_case()
    with MadeTensors() as made:
        assert ours(case, []) == {}
    assert made.shapes == []


def test_rows_that_the_tokenizer_does_not_have_are_left_out() -> None:
    mine, theirs = random_case(), random_case()
    mine.targets.remainder_(30)
    found = head_values(mine.hidden, Head(mine.weight, mine.bias, vocab_rows=30), mine.targets, [Nll(), LogSumExp()])
    assert theirs.bias is not None
    logits = dense.logits_of(theirs.hidden, theirs.weight, theirs.bias)[:, :30]
    torch.testing.assert_close(found[LogSumExp()], logits.logsumexp(-1))
    torch.testing.assert_close(found[Nll()], cross_entropy(logits, mine.targets, reduction="none"))
    torch.stack(list(found.values())).sum().backward()
    (logits.logsumexp(-1).sum() + cross_entropy(logits, mine.targets, reduction="sum")).backward()
    for leaf, other in zip(mine.leaves(), theirs.leaves(), strict=True):
        torch.testing.assert_close(leaf.grad, other.grad)
    assert mine.weight.grad is not None
    assert mine.weight.grad[30:].abs().max().item() == 0


def test_a_quantity_of_the_reference_without_its_head_is_an_error() -> None:
    case = random_case()
    with pytest.raises(ConfigError, match="declare HiddenState"):
        head_values(case.hidden, Head(case.weight), case.targets, [KlFromReference()])


# -- what is held and what is left alone --------------------------------------------------------------------------------


def run_large(case: Case, chunk_positions: int, wanted: Iterable[Quantity] = (Nll(), LogSumExp(), Entropy())) -> MadeTensors:
    with MadeTensors() as made:
        head = Head(case.weight, case.bias)
        found = head_values(case.hidden, head, case.targets, [*wanted], chunk_logits=chunk_positions * len(case.weight))
        torch.stack(list(found.values())).sum().backward()
    return made


def test_the_logits_of_all_positions_never_exist_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither forward nor backward, by the tensors that are made and by the rows that are multiplied."""
    rows: list[int] = []
    plain = nn.functional.linear

    def watched(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        rows.append(len(hidden))
        return plain(hidden, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", watched)
    made = run_large(random_case(n=300, vocabulary=500), 16)
    assert made.largest == 16 * 500
    assert max(rows) == 16
    assert sum(rows) == 2 * 300  # forward, and once more backward


def test_a_frozen_head_gets_no_gradient_and_pays_for_none() -> None:
    case = random_case(n=300, vocabulary=500)
    trained = run_large(case.fresh(), 16).shapes
    case.weight.requires_grad_(False)
    assert case.bias is not None
    case.bias.requires_grad_(False)
    frozen = run_large(case, 16).shapes
    assert case.weight.grad is None
    assert case.bias.grad is None
    assert (500, H) in trained
    assert (500, H) not in frozen
    assert case.hidden.grad is not None
    expected = case.fresh()
    run_large(expected, 16)
    assert torch.equal(case.hidden.grad, expected.hidden.grad)


def test_hidden_states_without_gradient_leave_the_weight_its_own() -> None:
    case, expected = random_case(), random_case()
    fixed = replace(case, hidden=case.hidden.detach())
    mixed(ours(fixed, [Nll(), LogSumExp()])).backward()
    mixed(ours(expected, [Nll(), LogSumExp()])).backward()
    assert fixed.hidden.grad is None
    torch.testing.assert_close(case.weight.grad, expected.weight.grad)


def test_without_gradients_nothing_is_kept() -> None:
    case = random_case()
    with torch.no_grad():
        assert not any(value.requires_grad for value in ours(case, ALL).values())


def test_a_position_that_the_loss_leaves_out_gets_no_gradient() -> None:
    case = random_case()
    found = ours(case, ALL)
    torch.stack(list(found.values()))[:, 5:].sum().backward()
    assert case.hidden.grad is not None
    assert case.hidden.grad[:5].abs().max().item() == 0
    assert bool((case.hidden.grad[5:].abs().sum(-1) > 0).all())


# -- precision ----------------------------------------------------------------------------------------------------------

BUDGETED: dict[Quantity, Any] = {
    Nll(): lambda z, y: cross_entropy(z, y, reduction="none"),
    LogSumExp(): lambda z, y: torch.logsumexp(z, -1),
    LogSumExp(2.0): lambda z, y: torch.logsumexp(z / 2, -1),
    Entropy(): lambda z, y: -(z.log_softmax(-1).exp() * z.log_softmax(-1)).sum(-1),
}
"""What a person would write, on dense logits of the head's own product, raised to float32 as transformers does."""

LOGITS = {"flat": (0.1, 0.0), "wide": (1.0, 0.0), "sure": (4.0, 0.0), "shifted": (0.5, 20.0)}
"""Spread of the weights, and a constant added to every logit."""

SLACK = {"value": 1.1, "hidden": 1.05, "weight": 1.05, "bias": 1.5}
"""The same sum in another order is worth some hundredths either way. The bias of a float32 head is summed chunk by chunk
where one sum over all positions goes by pairs: a last digit of numbers that are exact to six."""


def low_precision_case(seed: int, dtype: torch.dtype, spread: float, shift: float) -> Case:
    case = random_case(seed, n=96, width=32, vocabulary=400)
    assert case.bias is not None
    with torch.no_grad():
        logits = dense.logits_of(case.hidden, case.weight * spread, case.bias)
        sure = torch.arange(96) % 2 == 0
        targets = torch.where(sure, logits.argmax(-1), case.targets)
        rounded = [leaf.to(dtype) for leaf in (case.hidden, case.weight * spread, case.bias + shift)]
    return replace(case, hidden=rounded[0], weight=rounded[1], bias=rounded[2], targets=targets).fresh()


def results(case: Case, values: Tensor) -> dict[str, Tensor]:
    """Values and gradients in float64, the upstream gradient being the same for all."""
    (values * torch.linspace(0.1, 1, len(values), dtype=values.dtype)).sum().backward()
    gradients = [leaf.grad.double() for leaf in case.leaves() if leaf.grad is not None]
    return dict(zip(SLACK, [values.detach().double(), *gradients], strict=True))


def errors(quantity: Quantity, dtype: torch.dtype, logits: str, seed: int) -> dict[str, tuple[float, float]]:
    """Squared error of ours and of the naive version, each against float64."""
    case = low_precision_case(seed, dtype, *LOGITS[logits])
    exact = replace(case, hidden=case.hidden.double(), weight=case.weight.double(), bias=case.bias.double()).fresh()
    plain, formula = case.fresh(), BUDGETED[quantity]
    truth = results(exact, formula(dense.logits_of(exact.hidden, exact.weight, exact.bias), case.targets))
    same = results(plain, formula(nn.functional.linear(plain.hidden, plain.weight, plain.bias).float(), case.targets))
    head = Head(case.weight, case.bias)
    mine = results(case, head_values(case.hidden, head, case.targets, [quantity], chunk_logits=24 * 400)[quantity])
    return {
        name: (float((mine[name] - truth[name]).square().sum()), float((same[name] - truth[name]).square().sum()))
        for name in SLACK
    }


@pytest.mark.parametrize("logits", LOGITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("quantity", BUDGETED, ids=repr)
def test_our_error_is_at_most_the_naive_version_s(quantity: Quantity, dtype: torch.dtype, logits: str) -> None:
    """Root mean square over eight seeds, both against float64 on the same rounded inputs."""
    runs = [errors(quantity, dtype, logits, seed) for seed in range(8)]
    for name, slack in SLACK.items():
        mine, same = (sum(run[name][side] for run in runs) ** 0.5 for side in (0, 1))
        assert mine <= slack * same, f"{name}: {mine:.3g} against {same:.3g}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_values_are_float32_and_gradients_the_leaves_own(dtype: torch.dtype) -> None:
    case = low_precision_case(0, dtype, 0.5, 0.0)
    found = head_values(case.hidden, Head(case.weight, case.bias), case.targets, [Nll(), LogSumExp()])
    assert {value.dtype for value in found.values()} == {torch.float32}
    torch.stack(list(found.values())).sum().backward()
    assert [leaf.grad.dtype for leaf in case.leaves() if leaf.grad is not None] == [dtype] * 3


def test_autocast_computes_in_its_own_precision_and_returns_gradients_in_the_weights() -> None:
    mine, theirs = (low_precision_case(0, torch.float32, 0.5, 0.0) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        found = head_values(mine.hidden, Head(mine.weight, mine.bias), mine.targets, [Nll()])[Nll()]
        logits = nn.functional.linear(theirs.hidden, theirs.weight, theirs.bias)
    assert logits.dtype == torch.bfloat16
    expected = cross_entropy(logits.float(), theirs.targets, reduction="none")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    found.sum().backward()
    expected.sum().backward()
    for leaf, other in zip(mine.leaves(), theirs.leaves(), strict=True):
        assert leaf.grad is not None
        assert leaf.grad.dtype == torch.float32
        torch.testing.assert_close(leaf.grad, other.grad, rtol=0.02, atol=0.02)


# -- models' heads ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "transform"),
    [
        ("llama", LogitTransform()),
        ("llama-tied", LogitTransform()),
        ("gpt2", LogitTransform()),
        ("gemma2", LogitTransform(softcap=3.0)),
        ("cohere", LogitTransform(scale=0.25)),
        ("granite", LogitTransform(scale=0.25)),
    ],
)
def test_a_models_configuration_says_what_happens_to_its_logits(family: str, transform: LogitTransform) -> None:
    model = tiny_models.FAMILIES[family]()
    head = head_of(model)
    assert head.transform == transform
    assert head.weight is model.get_output_embeddings().weight
    assert head.vocab_rows is None
    assert head_of(model, vocab_rows=100).vocab_rows == 100


def test_gemma_without_a_cap_has_none() -> None:
    assert head_of(tiny_models.gemma2(softcap=None)).transform == LogitTransform()


@pytest.mark.parametrize(
    ("fields", "transform"),
    [
        ({"model_type": "falcon_h1", "lm_head_multiplier": 0.5}, LogitTransform(0.5)),
        ({"model_type": "granite", "logits_scaling": 8.0}, LogitTransform(1 / 8)),
        ({"model_type": "hyperclovax", "logits_scaling": 8.0}, LogitTransform(8.0)),
        ({"model_type": "cohere", "logit_scale": None}, LogitTransform()),
        ({"model_type": "gemma3_text", "final_logit_softcapping": 30.0}, LogitTransform(1.0, 30.0)),
    ],
)
def test_fields_of_other_families(fields: dict[str, Any], transform: LogitTransform) -> None:
    assert logit_transform(SimpleNamespace(**fields)) == transform


def test_a_head_that_is_no_plain_linear_layer_is_an_error() -> None:
    model = tiny_models.llama()
    model.lm_head = nn.Sequential(model.lm_head)
    with pytest.raises(ModelError, match="the LM head of LlamaForCausalLM is Sequential, not a plain linear layer"):
        head_of(model)
