"""What the trainer logs, shows and reports while it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, TrainerCallback
from transformers.integrations import integration_utils

import tiny_models
from d2unlearn.errors import ConfigError
from d2unlearn.training.run_input import check_reporting
from d2unlearn.training.sampling import PairPlan
from d2unlearn.training.trainer import TrainingBar

from .runs import FORGET, RETAIN, naive_eua, positions, trainer

pytestmark = pytest.mark.trains

CUTS = [(8, 1), (2, 4), (1, 8)]


def shifted(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """All logits of a position moved by one number, another one at each: energies come to lie on both sides of the margins."""
    torch.manual_seed(1)
    with torch.no_grad():
        model.lm_head.weight += torch.randn(model.config.hidden_size)
    return model


@pytest.mark.parametrize(("size", "accumulation"), CUTS)
def test_logs_are_means_over_the_effective_batch(tmp_path: Path, size: int, accumulation: int) -> None:
    """Rate 0: every step sees the same model. 8 rows a step; two steps a log."""
    made = trainer(
        tmp_path,
        tiny_models.llama(),
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        learning_rate=0.0,
        logging_steps=2,
    )
    shifted(made.model)
    made.train()
    (log,) = [log for log in made.state.log_history if "loss" in log]
    plan, model = PairPlan(8, 13, effective_batch=8, seed=42), shifted(tiny_models.llama())
    old = tiny_models.llama()
    losses, nlls, forget_shares, retain_shares = [], [], [], []
    with torch.no_grad():
        for step in range(2):
            pairs = [plan[step * 8 + i] for i in range(8)]
            forget, retain = [FORGET[p.forget] for p in pairs], [RETAIN[p.retain] for p in pairs]
            losses.append(naive_eua(model, old, forget, retain, ratio=0.1, gamma=0.5).item())
            nlls.append(naive_eua(model, old, forget, retain, ratio=0.1, gamma=0.0).item())
            at = [positions(model, old, row, 0.1) for row in forget]
            forget_shares.append(torch.cat([m_out > energy for energy, _, m_out, _ in at]).double().mean().item())
            at = [positions(model, old, row, 0.1) for row in retain]
            retain_shares.append(torch.cat([energy > m_in for energy, m_in, _, _ in at]).double().mean().item())
    assert log["loss"] == pytest.approx(sum(losses) / 2, rel=1e-5)
    assert log["retain_nll"] == pytest.approx(sum(nlls) / 2, rel=1e-5)
    assert log["forget_hinge_active"] == pytest.approx(sum(forget_shares) / 2, abs=1e-6)
    assert log["retain_hinge_active"] == pytest.approx(sum(retain_shares) / 2, abs=1e-6)
    assert 0.01 < log["forget_hinge_active"] < 0.99
    assert 0.01 < log["retain_hinge_active"] < 0.99


def test_each_evaluation_shows_what_a_person_steers_by(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = trainer(tmp_path, tiny_models.llama(), eval_strategy="epoch", logging_steps=1000)
    made.train()
    said = capsys.readouterr().err.splitlines()
    lines = [line for line in said if line.startswith("epoch")]
    below = [line for line in said if line.startswith("  mean logit")]
    logs = [log for log in made.state.log_history if "eval_selection" in log]
    assert [line.split(":")[0].split(",")[0] for line in lines] == ["epoch 1 of 2", "epoch 2 of 2"]
    for line, log in zip(lines, logs, strict=True):
        assert f"energy forget {log['eval_forget_energy']:.2f}, retain {log['eval_retain_energy']:.2f} | active hinges " in line
        assert f"retain NLL {log['eval_retain_nll']:.3f} | AUROC {log['eval_auroc']:.4f}" in line
    for line, log in zip(below, logs, strict=True):
        assert f"mean logit {log['eval_forget_mean_logit']:.2f} / {log['eval_retain_mean_logit']:.2f} | centred" in line
        assert f"energy {log['eval_forget_centred_energy']:.2f} / {log['eval_retain_centred_energy']:.2f} | entropy" in line
        assert "tokens right: retained - | KL to the original - | kept 1.000" in line  # a model that knows none of them
    active = made._monitored_means()
    assert f"active hinges {active['forget_hinge_active']:.0%} / {active['retain_hinge_active']:.0%} |" in lines[-1]


def test_a_terminal_gets_one_bar_over_the_steps_and_lines_above_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = trainer(tmp_path, tiny_models.llama(), eval_strategy="epoch", disable_tqdm=False)
    made.train()
    assert [type(each) for each in made.callback_handler.callbacks if "Progress" in str(type(each).__mro__)] == [TrainingBar]
    shown = capsys.readouterr()
    assert "4/4" in shown.err
    assert "loss=" in shown.err
    assert "{'" not in shown.err + shown.out
    assert [line for line in shown.err.replace("\r", "\n").splitlines() if "energy forget" in line][-1].startswith("epoch 2")


def test_everything_logged_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[dict[str, float]] = []

    class Tracker(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            received.append(dict(logs))

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tracker", Tracker)
    monkeypatch.setattr(integration_utils, "get_available_reporting_integrations", lambda: ["tracker"])
    check_reporting("tracker")
    trainer(tmp_path, tiny_models.llama(), eval_strategy="epoch", report_to="tracker").train()
    seen = set().union(*received)
    assert {"loss", "learning_rate", "grad_norm", "forget_hinge_active", "retain_hinge_active", "retain_nll"} <= seen
    assert {f"eval_{name}" for name in ("forget_energy", "retain_energy", "retain_nll", "auroc", "selection")} <= seen


def test_reporting_to_what_is_unknown_or_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integration_utils, "get_available_reporting_integrations", list)
    check_reporting("none")
    with pytest.raises(ConfigError, match="wandb needs its package"):
        check_reporting("wandb")
    with pytest.raises(ConfigError, match="not 'wnadb'"):
        check_reporting("wnadb")
