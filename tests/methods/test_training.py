"""Every method through the trainer: the step's loss is the live one, what is named moves, and resumed runs go on alike."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

import tiny_models
from d2unlearn.data.batching import pad_tokens
from d2unlearn.errors import ConfigError
from d2unlearn.methods import METHODS, batch_loss
from d2unlearn.methods.pdu import PDU
from d2unlearn.training.arguments import CHECKPOINTING
from d2unlearn.training.sampling import PairPlan

from .tiny_run import ALTERNATE, FORGET, RETAIN, RETAIN_ALTERNATE, moved, step_gradient, trainer, weights

pytestmark = pytest.mark.trains

CONVENTIONS = ("d2unlearn", "open-unlearning")
CASES: list[tuple[str, dict[str, Any]]] = [
    ("eua", {}),
    *((key, {"convention": convention}) for key in METHODS if key not in ("eua", "deep_eua") for convention in CONVENTIONS),
    *(("gradient_difference", {"retain_loss_type": "KL", "convention": convention}) for convention in CONVENTIONS),
    *(("rmu", {"retain_loss_type": "KL", "convention": convention}) for convention in CONVENTIONS),
]


def named(case: tuple[str, dict[str, Any]]) -> str:
    return "-".join([case[0], *map(str, case[1].values())])


@pytest.mark.parametrize("case", CASES, ids=named)
def test_two_steps_of_every_method(case: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    """The first step's loss, from stored values of the reference, is the loss with a live one; then what is named has moved."""
    method = METHODS[case[0]](**case[1])
    model = tiny_models.llama()
    before = weights(model)
    plan = PairPlan(len(FORGET), len(RETAIN), effective_batch=4, seed=42)
    pairs = [plan[i] for i in range(4)]
    rows = {"forget": FORGET, "retain": RETAIN, "alternate": ALTERNATE, "retain_alternate": RETAIN_ALTERNATE}
    batch = {role: vars(pad_tokens([rows[role][p.row_of(role)] for p in pairs], pad_id=0)) for role in method.needs}
    live = batch_loss(method, model, batch, reference=tiny_models.llama())
    made = trainer(tmp_path, model, method)
    made.train()
    losses = [log["loss"] for log in made.state.log_history if "loss" in log]
    assert len(losses) == 2
    assert losses[0] == pytest.approx(live.item(), rel=2e-5, abs=2e-6)
    trained = {name for name in before if made.method.trains(name)}
    assert moved(before, weights(model)) == trained


@pytest.mark.parametrize("key", ["rmu", "undial", "gradient_difference", "ce_u", "dpo", "idk_ap"])
def test_accumulation_does_not_change_a_step(key: str, tmp_path: Path) -> None:
    parameters = {"retain_loss_type": "KL"} if key == "gradient_difference" else {}
    found = []
    for rows, steps in ((4, 1), (1, 4)):
        changes = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": steps}
        made = trainer(tmp_path, tiny_models.llama(), METHODS[key](**parameters), **changes)
        found.append(step_gradient(made))
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-4, atol=1e-5)


def test_stored_values_are_cut_to_the_batch_where_padding_counts(tmp_path: Path) -> None:
    """A batch of short rows sees as much padding as it has, not as the longest row of the data would give it."""
    method = METHODS["gradient_difference"](gamma=0.0, retain_loss_type="KL", convention="open-unlearning")
    made = trainer(tmp_path, tiny_models.llama(), method)
    plan = PairPlan(len(FORGET), len(RETAIN), effective_batch=4, seed=42)
    shortest = min(range(len(RETAIN)), key=lambda i: len(RETAIN[i].input_ids))
    pair = next(plan[i] for i in range(40) if plan[i].retain == shortest)
    (stored,) = made._collate([pair])["reference"]["retain"].values()
    assert len(stored) == len(RETAIN[shortest].input_ids)
    (all_of_it,) = made._frozen["retain"][shortest].values()
    assert len(all_of_it) == max(len(row.input_ids) for row in RETAIN)
    torch.testing.assert_close(stored, all_of_it[: len(stored)], rtol=0, atol=0)


def test_rmu_with_an_adapter_trains_the_adapters_of_its_layers_alone(tmp_path: Path) -> None:
    method = METHODS["rmu"](module_regex=r"model\.layers\.1", trainable_params_regex=[r"model\.layers\.1\.mlp\..*"])
    peft = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    made = trainer(tmp_path, tiny_models.llama(), method, peft_config=peft)
    before = weights(made.model)
    made.train()
    changed = moved(before, weights(made.model))
    wanted = {n for n in before if "layers.1.mlp" in n and "lora_" in n}
    assert len(wanted) == 6
    assert changed == wanted


def test_rmu_runs_with_activation_checkpointing(tmp_path: Path) -> None:
    found = []
    for checkpointing in (False, True):
        model = tiny_models.llama()
        method = METHODS["rmu"](module_regex=r"model\.layers\.1")
        trainer(tmp_path, model, method, **{CHECKPOINTING: checkpointing}).train()
        found.append(weights(model))
    assert moved(found[0], found[1]) == set()


def test_a_method_that_names_nothing_is_told_so(tmp_path: Path) -> None:
    peft = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    method = METHODS["rmu"](trainable_params_regex=[r".*down_proj\.weight"])
    with pytest.raises(ConfigError, match="names no parameter that is trained here"):
        trainer(tmp_path, tiny_models.llama(), method, peft_config=peft)


# -- the dual variable of PDU ---------------------------------------------------------------------------------------------


def pdu_run(folder: Path, upon: str, **changes: Any) -> Any:
    """Four epochs of two steps, with a checkpoint after each step."""
    method = PDU(dual_update_upon=upon, dual_warmup_epochs=1, retain_loss_eps=1.0, alpha=0.5)
    settings = {"num_train_epochs": 4, "per_device_train_batch_size": 2, "save_strategy": "steps", "save_steps": 1}
    return trainer(folder, tiny_models.llama(), method, **{**settings, "save_total_limit": None, **changes})


@pytest.mark.parametrize("upon", ["step", "epoch"])
def test_the_dual_variable_follows_its_formula(upon: str, tmp_path: Path) -> None:
    made = pdu_run(tmp_path, upon, save_strategy="no")
    made.train()
    retain = [log["retain_loss"] for log in made.state.log_history if "retain_loss" in log]
    assert len(retain) == 8
    alpha = 0.5
    excesses = retain[2:] if upon == "step" else [(retain[2 * e] + retain[2 * e + 1]) / 2 for e in range(4)]
    for excess in excesses:
        alpha = max(0.0, alpha + excess - 1.0)
    assert made.method.alpha == pytest.approx(alpha, rel=1e-5)
    assert alpha > 5  # the bound is far below this model's loss: the variable has only risen


@pytest.mark.parametrize("upon", ["step", "epoch"])
@pytest.mark.parametrize("step", [3, 4])
def test_a_resumed_run_has_the_same_dual_variable_and_weights(upon: str, step: int, tmp_path: Path) -> None:
    """From a checkpoint within an epoch and from one between two: bit for bit what the uninterrupted run gives."""
    whole = pdu_run(tmp_path / "whole", upon)
    whole.train()
    shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", tmp_path / "cut" / f"checkpoint-{step}")
    resumed = pdu_run(tmp_path / "cut", upon)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / f"checkpoint-{step}"))
    assert resumed.method == whole.method
    assert moved(weights(whole.model), weights(resumed.model)) == set()


def test_the_dual_variable_never_falls_below_zero_and_rests_through_the_warm_up() -> None:
    method = PDU(alpha=0.2, retain_loss_eps=0.5, dual_step_size=2.0, dual_warmup_epochs=3)
    assert method.after_step({"retain_loss": 0.45}, 3).alpha == pytest.approx(0.1)
    assert method.after_step({"retain_loss": 0.1}, 3).alpha == 0.0
    assert method.after_step({"retain_loss": 9.0}, 2) is method
    assert method.after_epoch({"retain_loss": 9.0}, 9) is method
    assert PDU(primal_dual=False).after_step({"retain_loss": 9.0}, 9).alpha == 1.0
    by_epoch = PDU(dual_update_upon="epoch", dual_warmup_epochs=1)
    assert by_epoch.after_step({"retain_loss": 9.0}, 9) is by_epoch
    assert by_epoch.after_epoch({"retain_loss": 1.3}, 1).alpha == pytest.approx(2.0)
    assert math.isclose(by_epoch.after_epoch({"retain_loss": 0.3}, 0).alpha, 1.0)
