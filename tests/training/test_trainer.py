"""The trainer against the same run written out by hand, and what must not change its result."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import tiny_models
from d2unlearn import UnlearnConfig, UnlearnTrainer
from d2unlearn.errors import ConfigError
from d2unlearn.likelihood import IGNORE
from d2unlearn.methods import METHODS
from d2unlearn.observation import causal_model
from d2unlearn.training.sampling import PairPlan

from .runs import (
    EUA,
    FORGET,
    RETAIN,
    config,
    distance,
    micro_batches,
    moved,
    naive_eua,
    naively_trained,
    silent,
    step_gradient,
    trained,
    trainer,
    weights,
)

pytestmark = pytest.mark.trains

CUTS = [(8, 1), (2, 4), (1, 8)]
QUIET: dict[str, Callable[[], PreTrainedModel]] = {
    **tiny_models.FAMILIES,
    "gpt2": lambda: tiny_models.gpt2(dropout=0.0),
}


# -- the recipe -------------------------------------------------------------------------------------------------------


def test_training_is_the_recipe_written_out_row_by_row_with_dense_logits_and_a_second_model(tmp_path: Path) -> None:
    expected = naively_trained(tiny_models.llama(), rate=1e-3, epochs=4, effective=8, warmup=1)
    ours = trained(tmp_path, tiny_models.llama(), per_device_train_batch_size=8, num_train_epochs=4, warmup_epochs=1)
    before = weights(tiny_models.llama())
    assert distance(ours, before) > 1e-3
    assert distance(ours, expected) < 2e-6
    assert moved(ours, before) == list(before)


def test_defaults_are_the_published_ones(tmp_path: Path) -> None:
    default = UnlearnConfig(str(tmp_path), use_cpu=True)
    assert (default.learning_rate, default.num_train_epochs, default.weight_decay) == (1e-5, 10, 0.01)
    assert default.per_device_train_batch_size * default.gradient_accumulation_steps == 32
    assert (default.warmup_epochs, str(default.optim), default.bf16) == (1.0, "OptimizerNames.ADAMW_TORCH_FUSED", False)
    assert METHODS["eua"]() == METHODS["eua"](ratio=0.1, temperature=1.0, gamma=0.05, alpha=1.0)


@pytest.mark.parametrize(("epochs", "given", "steps"), [(1.0, 0, 2), (0.5, 0, 1), (2.5, 7, 5), (0.0, 3, 3)])
def test_warm_up_is_counted_in_epochs_unless_that_is_zero(tmp_path: Path, epochs: float, given: int, steps: int) -> None:
    made = trainer(tmp_path, tiny_models.llama(), warmup_epochs=epochs, warmup_steps=given, num_train_epochs=10)
    assert made.args.warmup_steps == steps
    assert len(made.get_train_dataloader()) == 2


@pytest.mark.parametrize(
    ("total", "steps"), [({"num_train_epochs": 1}, 1), ({"num_train_epochs": 0.5}, 0), ({"max_steps": 1}, 0)]
)
def test_a_warm_up_is_at_most_half_of_the_run(tmp_path: Path, total: dict[str, Any], steps: int) -> None:
    """Its first step has no rate: of a run of one step nothing would be left."""
    assert trainer(tmp_path, tiny_models.llama(), warmup_epochs=1.0, **total).args.warmup_steps == steps


def test_a_few_steps_lower_the_loss(tmp_path: Path) -> None:
    made = trainer(tmp_path, tiny_models.llama(), per_device_train_batch_size=8, num_train_epochs=8, learning_rate=3e-3)
    before = copy.deepcopy(made.model).eval()
    first = naive_eua(made.model, before, FORGET, RETAIN, ratio=0.1, gamma=0.5).item()
    made.train()
    assert naive_eua(made.model, before, FORGET, RETAIN, ratio=0.1, gamma=0.5).item() < 0.9 * first


# -- what must not change it ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", QUIET)
def test_eight_by_one_equals_two_by_four_and_one_by_eight(tmp_path: Path, family: str) -> None:
    """Rows differ in length, so that a mean of means would show, and one by eight has no padding among forget rows.

    In float64 for GPT-2: its key biases have no gradient but rounding, which AdamW makes as large as any other.
    """
    runs = []
    for size, accumulation in CUTS if family == "llama" else CUTS[::2]:
        model = QUIET[family]().double() if family == "gpt2" else QUIET[family]()
        cut = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
        runs.append(trained(tmp_path, model, num_train_epochs=2, **cut))
    assert max(distance(runs[0], other) for other in runs[1:]) < 1e-5
    assert distance(runs[0], weights(QUIET[family]())) > 1e-3


def test_loss_and_gradient_of_a_step_do_not_depend_on_its_cut(tmp_path: Path) -> None:
    found = []
    for size, accumulation in CUTS:
        cut = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
        found.append(step_gradient(trainer(tmp_path, tiny_models.llama(), **cut)))
    for loss, gradient in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-6)
        assert distance(gradient, found[0][1]) < 1e-6


def test_padding_changes_nothing(tmp_path: Path) -> None:
    """Neither how much of it there is nor which ids it holds."""

    def padded(batch: dict[str, Any], fill: int) -> dict[str, Any]:
        wider = dict(batch)
        for role in ("forget", "retain"):
            fills = {"input_ids": fill, "attention_mask": 0, "labels": IGNORE}
            wider[role] = {key: nn.functional.pad(batch[role][key], (0, 9), value=fills[key]) for key in fills}
        return wider

    made = trainer(tmp_path, tiny_models.llama(), per_device_train_batch_size=8)
    (batch,) = micro_batches(made)
    expected = made.compute_loss(made.model, batch)
    gradient = torch.autograd.grad(expected, list(made.model.parameters()))
    for fill in (0, 17):
        loss = made.compute_loss(made.model, padded(batch, fill))
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
        for ours, theirs in zip(torch.autograd.grad(loss, list(made.model.parameters())), gradient, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_checkpointed_activations_give_the_same_weights(tmp_path: Path, family: str) -> None:
    plain = trained(tmp_path, QUIET[family]())
    assert distance(plain, trained(tmp_path, QUIET[family](), activation_checkpointing=True)) < 1e-7


def test_rows_without_answer_tokens_add_nothing_and_a_step_of_them_gives_zero_not_nan(tmp_path: Path) -> None:
    rows = {
        "forget_dataset": [*FORGET[:3], *map(silent, FORGET[3:])],
        "retain_dataset": [*RETAIN[:2], *map(silent, RETAIN[2:])],
    }
    loss, gradient = step_gradient(trainer(tmp_path, tiny_models.llama(), per_device_train_batch_size=8, **rows))
    plan = PairPlan(8, 13, effective_batch=8, seed=42)
    retained = [RETAIN[plan[i].retain] for i in range(8) if plan[i].retain < 2]
    model = tiny_models.llama()
    expected = naive_eua(model, tiny_models.llama(), FORGET[:3], retained, ratio=0.1, gamma=0.5)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert distance(gradient, {name: p.grad for name, p in model.named_parameters()}) < 1e-5

    single = trainer(tmp_path, tiny_models.llama(), per_device_train_batch_size=1, num_train_epochs=1, **rows)
    single.train()
    losses = [log["loss"] for log in single.state.log_history if "loss" in log]
    nothing = [plan[i].forget >= 3 and plan[i].retain >= 2 for i in range(8)]
    assert [loss == 0.0 for loss in losses] == nothing
    assert any(nothing)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights(single.model).values())


def test_mixed_precision_stays_within_the_error_of_dense_logits_in_the_same_precision(tmp_path: Path) -> None:
    """Loss of one step in bfloat16 against float64, ours and the naive one's, summed over ten models."""
    ours, naive = [], []
    for seed in range(10):
        reference = tiny_models.llama(seed=seed)
        exact = tiny_models.llama(seed=seed + 100).double()
        made = trainer(tmp_path, reference, per_device_train_batch_size=8, bf16=True)
        made.accelerator.prepare(made.model)
        (batch,) = micro_batches(made)
        plan = PairPlan(8, 13, effective_batch=8, seed=42)
        forget, retain = [FORGET[plan[i].forget] for i in range(8)], [RETAIN[plan[i].retain] for i in range(8)]
        old = tiny_models.llama(seed=seed)
        with torch.no_grad():
            truth = naive_eua(exact, old, forget, retain, ratio=0.1, gamma=0.5).item()
            made.model.load_state_dict(tiny_models.llama(seed=seed + 100).state_dict())
            ours.append(abs(made.compute_loss(made.model, batch).item() - truth))
            moved_model = tiny_models.llama(seed=seed + 100)
            with torch.autocast("cpu", torch.bfloat16):
                naive.append(abs(naive_eua(moved_model, old, forget, retain, ratio=0.1, gamma=0.5).item() - truth))
    assert sum(ours) <= 1.5 * sum(naive)
    assert max(ours) < 0.05 * truth


def test_training_in_mixed_precision_follows_float32(tmp_path: Path) -> None:
    start = weights(tiny_models.llama())
    full = trained(tmp_path, tiny_models.llama(), num_train_epochs=4)
    mixed = trained(tmp_path, tiny_models.llama(), num_train_epochs=4, bf16=True)
    assert {tensor.dtype for tensor in mixed.values()} == {torch.float32}
    assert mixed.keys() == set(moved(mixed, start))
    steps = [torch.cat([(after[name] - start[name]).flatten() for name in start]) for after in (full, mixed)]
    assert float(torch.cosine_similarity(*steps, dim=0)) > 0.9


def test_dropout_disturbs_training_alone_and_the_seed_decides_how(tmp_path: Path) -> None:
    def run(**changes: Any) -> tuple[UnlearnTrainer, dict[str, Tensor]]:
        made = trainer(tmp_path, tiny_models.gpt2(dropout=0.3), **changes)
        made.train()
        return made, weights(made.model)

    (first, after), (second, again), (_, other) = run(), run(), run(seed=1)
    assert distance(after, again) == 0.0
    assert distance(after, other) > 1e-4
    quiet = trainer(tmp_path, tiny_models.gpt2(dropout=0.0))
    assert first.before == second.before == quiet.before
    for row in range(len(FORGET)):
        for q, values in quiet._frozen["forget"][row].items():
            assert torch.equal(values, first._frozen["forget"][row][q])
    quiet.train()
    assert distance(after, weights(quiet.model)) > 1e-4


class Wrapper(nn.Module):
    """As DDP does it: the model is `.module`, and whoever goes past the wrapper is not counted."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.calls = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.module(*args, **kwargs)


def test_both_sides_of_a_step_go_through_the_wrapped_model_in_one_forward(tmp_path: Path) -> None:
    made = trainer(tmp_path, tiny_models.llama(), per_device_train_batch_size=8)
    (batch,) = micro_batches(made)
    plain = made.compute_loss(made.model, batch)
    wrapper = Wrapper(made.model)
    wrapped = made.compute_loss(wrapper, batch)
    assert wrapper.calls == 1
    assert torch.equal(plain, wrapped)
    assert causal_model(wrapper) is made.model


def test_logits_are_never_made(tmp_path: Path) -> None:
    made = trainer(tmp_path, tiny_models.llama(), per_device_train_batch_size=8)
    shapes: list[tuple[int, ...]] = []
    made.model.lm_head.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    (batch,) = micro_batches(made)
    made.compute_loss(made.model, batch)
    assert [shape[-1] for shape in shapes] == [1]


@pytest.mark.parametrize(
    ("sharding", "says"), [("FSDP", "start with torchrun, and say fsdp=True"), ("DEEPSPEED", "DeepSpeed is not supported")]
)
def test_sharding_by_accelerate_s_environment_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sharding: str, says: str
) -> None:
    args = config(tmp_path)
    monkeypatch.setenv(f"ACCELERATE_USE_{sharding}", "true")
    with pytest.raises(ConfigError, match=says):
        UnlearnTrainer(tiny_models.llama(), args, EUA, FORGET, RETAIN)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({}, "start them with torchrun"),
        ({"cpu_offload": True}, "FSDP with cpu_offload was never run here"),
        ({"activation_checkpointing": True}, "FSDP with activation_checkpointing was never run here"),
        ({"state_dict_type": "FULL_STATE_DICT"}, "version 2 with checkpoints in parts"),
    ],
)
def test_fsdp_otherwise_than_it_was_run_is_refused(tmp_path: Path, asked: dict[str, Any], says: str) -> None:
    args = config(tmp_path, fsdp=True, fsdp_config=asked)
    with pytest.raises(ConfigError, match=says):
        UnlearnTrainer(tiny_models.llama(), args, EUA, FORGET, RETAIN)


def test_several_devices_in_one_process_are_not_used_through_data_parallel(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = config(tmp_path)
    assert args.n_gpu == 0
    args._n_gpu = 2
    made = UnlearnTrainer(tiny_models.llama(), args, EUA, FORGET, RETAIN)
    assert "2 devices are here and one is used" in capsys.readouterr().err
    assert made._wrap_model(made.model) is made.model
    assert made.args.train_batch_size == 4


def test_the_model_s_cache_setting_is_as_before(tmp_path: Path) -> None:
    made = trainer(tmp_path, tiny_models.llama(), save_strategy="epoch", eval_strategy="epoch")
    made.train()
    assert made.model.config.use_cache is True
    assert json.loads((tmp_path / "checkpoint-4" / "config.json").read_text())["use_cache"] is True
