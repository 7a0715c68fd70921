"""One forward observed at the answer positions: every family against its own logits, what is never made, and what is undone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor, nn

import tiny_models
from d2unlearn.data.batching import pad_tokens
from d2unlearn.errors import ModelError
from d2unlearn.head import head_of
from d2unlearn.observation import Batch, Observed, causal_model, check_head, join, observe, observed
from d2unlearn.quantities import CentredEnergy, Entropy, HiddenState, KlFromReference, LogSumExp, Nll, Observable, Quantity
from d2unlearn.schema import Role
from d2unlearn.training.adapter import adapted
from reference import dense
from reference.recorder import MadeTensors

FORGET = pad_tokens(tiny_models.rows(1, 3), pad_id=0)
RETAIN = pad_tokens(tiny_models.rows(2, 4), pad_id=0)
BATCHES: dict[Role, Batch] = {"forget": FORGET, "retain": RETAIN}
ASKED: tuple[Quantity, ...] = (Nll(), LogSumExp(), LogSumExp(2.0), CentredEnergy(), Entropy())
WANTED: dict[Role, Sequence[Observable]] = {"forget": ASKED[1:3], "retain": ASKED}
FAMILIES = pytest.mark.parametrize("family", tiny_models.FAMILIES)


def answers(values: Tensor, labels: Tensor) -> Tensor:
    """[B, T, ...] -> [N, ...] at the positions before the answer tokens."""
    return values[:, :-1][labels[:, 1:] != -100]


def dense_values(model: nn.Module, batch: Batch, wanted: Sequence[Observable]) -> dict[Observable, Tensor]:
    """From the model's own logits of every position."""
    logits = answers(tiny_models.full_logits(model, batch), batch.labels)
    targets = batch.labels[:, 1:][batch.labels[:, 1:] != -100]
    return {q: dense.QUANTITIES[q](logits, targets, logits) for q in wanted if isinstance(q, Quantity)}


def total(found: dict[Role, dict[Observable, Tensor]]) -> Tensor:
    """A weighted sum, another weight for each quantity and position."""
    terms = []
    for role in found:
        for place, value in enumerate(found[role].values()):
            weights = torch.linspace(-1, 2 + place, len(value), dtype=value.dtype)
            terms.append((value * weights).mean())
    return torch.stack(terms).sum()


def gradients(loss: Tensor, model: nn.Module) -> dict[str, Tensor]:
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))


@FAMILIES
def test_values_and_all_gradients_are_those_of_the_models_own_logits(family: str) -> None:
    """Tied and untied heads, soft caps, factors. The norms of transformers compute in float32, so gradients agree to that."""
    model = tiny_models.FAMILIES[family]().double()
    found = observe(model, BATCHES, WANTED)
    expected = {role: dense_values(model, BATCHES[role], WANTED[role]) for role in BATCHES}
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradients(total(found), model), gradients(total(expected), model), rtol=1e-5, atol=1e-6)


@FAMILIES
def test_float32_models_agree_to_float32(family: str) -> None:
    model = tiny_models.FAMILIES[family]()
    found = observe(model, {"retain": RETAIN}, {"retain": ASKED})["retain"]
    torch.testing.assert_close(found, dense_values(model, RETAIN, ASKED), rtol=1e-5, atol=1e-5)


def test_a_bfloat16_model_is_observed_in_its_own_logits() -> None:
    model = tiny_models.llama().bfloat16()
    found = observe(model, {"retain": RETAIN}, {"retain": [Nll(), LogSumExp()]})["retain"]
    logits = answers(tiny_models.full_logits(model, RETAIN), RETAIN.labels).float()
    assert found[LogSumExp()].dtype == torch.float32
    torch.testing.assert_close(found[LogSumExp()], logits.logsumexp(-1), rtol=0, atol=0.02)


def test_autocast_reaches_the_head() -> None:
    model = tiny_models.llama()
    with torch.autocast("cpu", torch.bfloat16):
        found = observe(model, {"retain": RETAIN}, {"retain": [LogSumExp()]})["retain"][LogSumExp()]
        logits = answers(tiny_models.full_logits(model, RETAIN), RETAIN.labels)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(found, logits.float().logsumexp(-1), rtol=0, atol=0.02)
    plain = observe(model, {"retain": RETAIN}, {"retain": [LogSumExp()]})["retain"][LogSumExp()]
    assert 1e-4 < float((plain - found).detach().abs().max()) < 0.1


def test_all_roles_go_through_the_model_once() -> None:
    model = tiny_models.llama()
    seen: list[tuple[int, ...]] = []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    observe(model, BATCHES, WANTED)
    handle.remove()
    assert seen == [(7, max(FORGET.input_ids.shape[1], RETAIN.input_ids.shape[1]))]


def test_a_pass_for_two_roles_is_two_passes_for_one() -> None:
    model = tiny_models.gpt2()
    both = observe(model, BATCHES, WANTED)
    for role in BATCHES:
        alone = observe(model, {role: BATCHES[role]}, WANTED)
        torch.testing.assert_close(both[role], alone[role], rtol=1e-5, atol=1e-5)
        assert list(alone) == [role]


def test_the_logits_of_the_sequence_are_never_made() -> None:
    """Three answer tokens in rows of 200: less is made than half of [B, T, V]; transformers' own forward makes it all."""
    ids = torch.randint(4, 120, (4, 200), generator=torch.Generator().manual_seed(0))
    labels = torch.full_like(ids, -100)
    labels[:, -3:] = ids[:, -3:]
    batch = Batch(ids, torch.ones_like(ids), labels)
    model = tiny_models.llama()
    model.config._attn_implementation = "sdpa"
    whole = 4 * 200 * 120
    with MadeTensors() as made:
        found = observe(model, {"retain": batch}, {"retain": [Nll(), LogSumExp()]})["retain"]
        torch.stack(list(found.values())).sum().backward()
    assert (4, 200, 120) not in made.shapes
    assert not [shape for shape in made.shapes if shape[-1:] == (120,) and torch.Size(shape).numel() > 4 * 3 * 120]
    with MadeTensors() as plain:
        tiny_models.full_logits(model, batch)
    assert plain.largest >= whole


def test_the_head_that_was_there_comes_back() -> None:
    model = tiny_models.llama()
    before = tiny_models.full_logits(model, RETAIN)
    observe(model, BATCHES, WANTED)
    assert torch.equal(tiny_models.full_logits(model, RETAIN), before)
    assert "forward" not in vars(model.lm_head)

    class Broken(Quantity):
        def of(self, chunk: object) -> Tensor:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        observe(model, BATCHES, {"forget": [Broken()]})
    assert torch.equal(tiny_models.full_logits(model, RETAIN), before)


def test_a_forward_that_somebody_put_on_the_head_comes_back() -> None:
    """As accelerate does when it places a model."""
    model = tiny_models.llama()
    plain = model.lm_head.forward

    def placed(hidden: Tensor) -> Tensor:
        return plain(hidden)

    model.lm_head.forward = placed
    observe(model, BATCHES, WANTED)
    assert model.lm_head.forward is placed


def test_rows_that_the_tokenizer_does_not_have_are_left_out() -> None:
    model = tiny_models.llama()
    batch = Batch(RETAIN.input_ids % 100, RETAIN.attention_mask, torch.where(RETAIN.labels == -100, -100, RETAIN.labels % 100))
    found = observe(model, {"retain": batch}, {"retain": [LogSumExp(), Nll()]}, vocab_rows=100)["retain"]
    logits = answers(tiny_models.full_logits(model, batch)[..., :100], batch.labels)
    torch.testing.assert_close(found[LogSumExp()], logits.logsumexp(-1), rtol=1e-5, atol=1e-5)


def test_a_batch_without_answers_has_no_values_and_a_gradient_of_zero() -> None:
    model = tiny_models.llama()
    silent = Batch(RETAIN.input_ids, RETAIN.attention_mask, torch.full_like(RETAIN.labels, -100))
    found = observe(model, {"forget": FORGET, "retain": silent}, WANTED)
    assert [value.shape for value in found["retain"].values()] == [(0,)] * len(ASKED)
    alone = observe(model, {"retain": silent}, WANTED)["retain"]
    torch.stack([value.sum() for value in alone.values()]).sum().backward()
    assert {float(p.grad.abs().max()) for p in model.parameters() if p.grad is not None} == {0.0}


# -- hidden states ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "module", "place"),
    [("llama", "model.layers.0", 1), ("gemma2", "model.layers.0", 1), ("gpt2", "transformer.h.0", 1)],
)
def test_hidden_states_are_the_models_own(family: str, module: str, place: int) -> None:
    model = tiny_models.FAMILIES[family]()
    wanted: list[Observable] = [HiddenState(module), HiddenState(), LogSumExp()]
    found = observe(model, BATCHES, {"forget": wanted, "retain": wanted[1:]})
    assert list(found["retain"]) == [LogSumExp(), HiddenState()]
    for role, batch in BATCHES.items():
        out = model(batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True, use_cache=False)
        last = answers(out.hidden_states[-1], batch.labels)
        torch.testing.assert_close(found[role][HiddenState()], last, rtol=1e-4, atol=1e-5)
        if role == "forget":
            inner = answers(out.hidden_states[place], batch.labels)
            torch.testing.assert_close(found[role][HiddenState(module)], inner, rtol=1e-4, atol=1e-5)
            assert found[role][HiddenState(module)].requires_grad


def test_a_submodule_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ModelError, match=r"LlamaForCausalLM has no submodule 'model.layers.9'; see model.named_modules"):
        observe(tiny_models.llama(), {"forget": FORGET}, {"forget": [HiddenState("model.layers.9")]})


def test_no_hook_stays_behind() -> None:
    model = tiny_models.llama()
    observe(model, {"forget": FORGET}, {"forget": [HiddenState("model.layers.0")]})
    assert not any(module._forward_hooks for module in model.modules())


def test_the_divergence_from_stored_states_of_the_reference() -> None:
    model, reference = tiny_models.llama(seed=0), tiny_models.llama(seed=1)
    with torch.no_grad():
        stored = observe(reference, {"retain": RETAIN}, {"retain": [HiddenState()]})
        old = answers(tiny_models.full_logits(reference, RETAIN), RETAIN.labels)
    found = observe(
        model, {"retain": RETAIN}, {"retain": [KlFromReference()]}, reference=stored, reference_head=head_of(reference)
    )["retain"][KlFromReference()]
    new = answers(tiny_models.full_logits(model, RETAIN), RETAIN.labels)
    expected = (old.softmax(-1) * (old.log_softmax(-1) - new.log_softmax(-1))).sum(-1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


# -- wrappers -----------------------------------------------------------------------------------------------------------


class Wrapper(nn.Module):
    """What DDP looks like from outside: the model is its `module`, and calls are counted."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.calls = 0

    def forward(self, **inputs: Any) -> Any:
        self.calls += 1
        return self.module(**inputs)


def with_adapter(model: nn.Module) -> nn.Module:
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    return adapted(model, config, checkpointing=False)


def test_the_forward_goes_through_the_wrappers() -> None:
    model = with_adapter(tiny_models.llama())
    wrapped = Wrapper(Wrapper(model))
    assert causal_model(wrapped) is model.get_base_model()
    found = observe(wrapped, BATCHES, WANTED)
    assert (wrapped.calls, wrapped.module.calls) == (1, 1)
    expected = {role: dense_values(model, BATCHES[role], WANTED[role]) for role in BATCHES}
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_only_the_adapter_is_trained_where_there_is_one() -> None:
    """In float64, where both ways take the same steps but for the norms."""
    model = with_adapter(tiny_models.llama()).double()
    found, expected = (
        observe(model, BATCHES, WANTED),
        {role: dense_values(model, BATCHES[role], WANTED[role]) for role in BATCHES},
    )
    ours = gradients(total(found), model)
    torch.testing.assert_close(ours, gradients(total(expected), model), rtol=1e-5, atol=1e-6)
    assert {"lora_A" in name or "lora_B" in name for name in ours} == {True}


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing(reentrant: bool) -> None:
    model = tiny_models.llama().double().train()
    wanted: dict[Role, Sequence[Observable]] = {"forget": [LogSumExp()], "retain": [Nll(), LogSumExp()]}
    plain = gradients(total(observe(model, BATCHES, wanted)), model)
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
    else:  # its name before transformers 5.24
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
        total(observe(model, BATCHES, wanted)).backward()
        again = {name: p.grad for name, p in model.named_parameters()}
    else:
        again = gradients(total(observe(model, BATCHES, wanted)), model)
    torch.testing.assert_close(again, plain, rtol=1e-9, atol=1e-9)


# -- the check of a head ------------------------------------------------------------------------------------------------


@FAMILIES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_check_passes_for_heads_that_are_known(family: str, dtype: torch.dtype) -> None:
    model = tiny_models.FAMILIES[family]().to(dtype)
    check_head(model)
    check_head(Wrapper(model))


def test_the_check_stops_a_model_that_changes_its_logits_in_secret() -> None:
    model = tiny_models.granite()
    check_head(model)
    altered = copy.deepcopy(model)
    altered.forward = lambda **inputs: _doubled(type(model).forward(altered, **inputs))
    with pytest.raises(ModelError, match=r"GraniteForCausalLM changes its logits in a way that is not known here"):
        check_head(altered)


def _doubled(output: Any) -> Any:
    output.logits = 2 * output.logits
    return output


@pytest.mark.parametrize("training", [True, False])
def test_the_check_leaves_the_mode_as_it_was(training: bool) -> None:
    model = tiny_models.gpt2().train(training)
    check_head(model)
    assert {module.training for module in model.modules()} == {training}


# -- batches and means --------------------------------------------------------------------------------------------------


def test_joined_rows_stand_one_role_after_another_padded_on_the_right() -> None:
    first = Batch(torch.tensor([[5, 6, 7]]), torch.tensor([[1, 1, 1]]), torch.tensor([[-100, 6, 7]]))
    second = Batch(torch.tensor([[8], [9]]), torch.tensor([[1], [1]]), torch.tensor([[8], [-100]]))
    joined = join([first, second])
    assert joined.input_ids.tolist() == [[5, 6, 7], [8, 0, 0], [9, 0, 0]]
    assert joined.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0], [1, 0, 0]]
    assert joined.labels.tolist() == [[-100, 6, 7], [8, -100, -100], [-100, -100, -100]]


THREE_ROWS = torch.tensor([[-100, 4, 5, 6], [-100, 7, -100, -100], [-100, -100, -100, -100]])
"""Three, one and no answer tokens."""


def bundle(labels: Tensor = THREE_ROWS, **totals: float) -> Observed:
    return observed(Batch(labels, torch.ones_like(labels), labels), {}, {}, **totals)


def test_means_over_positions_and_rows_by_hand() -> None:
    seen = bundle()
    values = torch.tensor([1.0, 2.0, 3.0, 10.0])
    assert seen.rows.tolist() == [0, 0, 0, 1]
    assert seen.lengths.tolist() == [3, 1, 0]
    assert seen.mean(values).item() == 4.0
    assert seen.sum_by_row(values).tolist() == [6.0, 10.0, 0.0]
    assert seen.mean_by_row(values).tolist() == [2.0, 10.0, 0.0]
    assert seen.mean_rows(seen.mean_by_row(values)).item() == 6.0


def test_what_stands_in_a_row_without_positions_is_not_counted() -> None:
    values = torch.tensor([2.0, 4.0, float("nan")], requires_grad=True)
    mean = bundle().mean_rows(values)
    mean.backward()
    assert mean.item() == 3.0
    assert values.grad is not None
    assert values.grad.tolist() == [0.5, 0.5, 0.0]


def test_shares_of_a_batch_add_up_to_its_mean() -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 10.0])
    parts = [bundle(THREE_ROWS[rows], total_positions=4, total_rows=2) for rows in (slice(0, 1), slice(1, 3))]
    shares = [part.mean(values[where]) for part, where in zip(parts, (slice(0, 3), slice(3, 4)), strict=True)]
    assert [share.item() for share in shares] == [1.5, 2.5]
    by_row = [
        part.mean_rows(part.mean_by_row(values[where])) for part, where in zip(parts, (slice(0, 3), slice(3, 4)), strict=True)
    ]
    assert [share.item() for share in by_row] == [1.0, 5.0]


def test_the_mean_of_nothing_is_zero() -> None:
    nothing = bundle(torch.full((2, 3), -100))
    assert nothing.mean(torch.zeros(0)).item() == 0
    assert nothing.mean_rows(nothing.mean_by_row(torch.zeros(0))).item() == 0
    assert (nothing.total_positions, nothing.total_rows, nothing.n_rows) == (0, 0, 2)
