"""What a person steers by: values against a naive restatement, the rule by which a checkpoint is kept, plain warnings."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import tiny_models
from d2unlearn.data.batching import pad_tokens
from d2unlearn.schema import Kind, Tokens
from d2unlearn.stats import harmonic_mean
from d2unlearn.training import trainer as trainer_module
from d2unlearn.training.monitor import Snapshot, take_snapshot, warning_of

from .runs import FORGET, RETAIN, distance, silent, trainer, weights

ROWS: dict[Kind, list[Tokens]] = {"forget": FORGET, "retain": RETAIN}
NOTHING = -math.log(120)
START = Snapshot(-20.0, -19.0, forget_probability=0.9, retain_probability=0.8, retain_nll=0.2, auroc=0.5)


def naively(model: nn.Module, rows: list[Tokens]) -> list[tuple[float, float, float]]:
    """(energy at the last prompt position, mean answer energy, mean answer NLL) of each row, from its own dense logits."""
    found = []
    for row in rows:
        start = row.answer_mask.index(True)
        with torch.no_grad():
            logits = tiny_models.full_logits(model, pad_tokens([row], pad_id=0))[0].double()
        energies = -logits.logsumexp(-1)[start - 1 : -1]
        log_p = logits.log_softmax(-1)[range(start - 1, len(row.input_ids) - 1), row.input_ids[start:]]
        found.append((energies[0].item(), energies.mean().item(), -log_p.mean().item()))
    return found


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_a_snapshot_is_the_naive_one_whatever_the_batch_size(family: str, batch_size: int) -> None:
    model = tiny_models.FAMILIES[family]()
    found = take_snapshot(model, ROWS, batch_size=batch_size, before=START)
    forget, retain = naively(model, FORGET), naively(model, RETAIN)
    assert found.forget_energy == pytest.approx(np.mean([row[1] for row in forget]), rel=1e-5)
    assert found.retain_energy == pytest.approx(np.mean([row[1] for row in retain]), rel=1e-5)
    assert found.forget_probability == pytest.approx(np.mean([math.exp(-row[2]) for row in forget]), rel=1e-4)
    assert found.retain_probability == pytest.approx(np.mean([math.exp(-row[2]) for row in retain]), rel=1e-4)
    assert found.retain_nll == pytest.approx(np.mean([row[2] for row in retain]), rel=1e-5)
    wins = [float(f[0] > r[0]) for f in forget for r in retain]
    assert found.auroc == pytest.approx(np.mean(wins))


def test_rows_are_what_a_mean_is_over_and_those_without_an_answer_are_left_out() -> None:
    model = tiny_models.llama()
    mixed = {kind: [silent(rows[0]), *rows[1:], silent(rows[2])] for kind, rows in ROWS.items()}
    found = take_snapshot(model, mixed)
    expected = take_snapshot(model, {kind: rows[1:] for kind, rows in ROWS.items()})
    assert found == expected


def test_without_a_row_to_look_at_the_values_are_not_numbers() -> None:
    found = take_snapshot(tiny_models.llama(), {"forget": [], "retain": RETAIN})
    assert math.isnan(found.forget_energy)
    assert math.isnan(found.forget_probability)
    assert math.isnan(found.auroc)
    assert math.isnan(found.selection)
    assert found.retain_nll == take_snapshot(tiny_models.llama(), ROWS).retain_nll


def test_looking_disturbs_nothing() -> None:
    model = tiny_models.gpt2(dropout=0.5).train()
    state = torch.get_rng_state()
    assert take_snapshot(model, ROWS) == take_snapshot(tiny_models.gpt2(dropout=0.0), ROWS)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_selection_is_the_harmonic_mean_of_erased_kept_and_separation() -> None:
    """By hand: erased 0.9, kept 0.4 / 0.8, AUROC 0.75 give 3 / (1/0.9 + 1/0.5 + 1/0.75) = 0.675."""
    assert harmonic_mean([0.9, 0.4 / 0.8, 0.75]) == pytest.approx(0.675)
    found = take_snapshot(tiny_models.llama(), ROWS, before=START)
    kept = found.retain_probability / 0.8
    by_hand = 3 / (1 / (1 - found.forget_probability) + 1 / kept + 1 / found.auroc)
    assert found.selection == pytest.approx(by_hand)
    unchanged = take_snapshot(tiny_models.llama(), ROWS)
    assert unchanged.selection == pytest.approx(3 / (1 / (1 - found.forget_probability) + 1 + 1 / found.auroc))
    better = take_snapshot(tiny_models.llama(), ROWS, before=replace(START, retain_probability=1e-9))
    assert better.selection == pytest.approx(unchanged.selection)  # more than was there counts as all of it


@pytest.mark.parametrize(
    ("retain_energy", "retain_nll"),
    [(-19.0, 0.2), (-25.0, 0.1), (-13.0, 0.2), (-19.0, 1.1)],
)
def test_a_model_that_keeps_what_it_should_is_not_warned_of(retain_energy: float, retain_nll: float) -> None:
    """Room: from -19 to -log 120 = -4.79 nats. Half of it, 7.1, may go."""
    now = replace(START, retain_energy=retain_energy, retain_nll=retain_nll)
    assert warning_of(START, now, energy_of_nothing=NOTHING) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"retain_energy": -11.8}, "retained energy rose from -19.00 to -11.80"),
        ({"retain_nll": 1.3}, "retained NLL grew from 0.200 to 1.300"),
        ({"retain_nll": math.nan}, "no longer a number"),
        ({"retain_nll": math.inf}, "no longer a number"),
        ({"retain_energy": math.nan}, "no longer a number"),
        ({"retain_energy": 500.0, "retain_nll": 9.0}, "retained energy rose"),
    ],
)
def test_a_model_that_is_being_destroyed_is_warned_of(changes: dict[str, float], said: str) -> None:
    warning = warning_of(START, replace(START, **changes), energy_of_nothing=NOTHING)
    assert warning is not None
    assert said in warning
    assert "lower the learning rate" in warning


@pytest.mark.parametrize(("start", "fine", "gone"), [(33.0, 45.0, 60.0), (-5.0, -4.2, -3.9)])
def test_energies_that_begin_near_or_above_that_of_nothing_are_no_alarm(start: float, fine: float, gone: float) -> None:
    """GPT-2's begin at about +33 nats. Room: 37.8 nats there, 2 at least, and half of it may go."""
    before = replace(START, retain_energy=start)
    assert warning_of(before, replace(before, retain_energy=fine), energy_of_nothing=NOTHING) is None
    warning = warning_of(before, replace(before, retain_energy=gone), energy_of_nothing=NOTHING)
    assert warning is not None
    assert "retained energy rose" in warning


@pytest.mark.trains
@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_unlearning_at_a_sound_rate_warns_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str], family: str) -> None:
    trainer(tmp_path, tiny_models.FAMILIES[family](), eval_strategy="epoch", num_train_epochs=3).train()
    assert "warning" not in capsys.readouterr().err


@pytest.mark.trains
def test_a_rate_that_destroys_the_model_is_warned_of_at_each_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer(tmp_path, tiny_models.llama(), eval_strategy="epoch", num_train_epochs=4, learning_rate=3.0).train()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: the model is")]
    assert len(lines) == 4


def test_weights_that_are_no_numbers_any_more_are_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = trainer(tmp_path, tiny_models.llama())
    with torch.no_grad():
        made.model.lm_head.weight[3] = math.nan
    metrics = made.evaluate()
    assert math.isnan(metrics["eval_selection"])
    assert "no longer a number; lower the learning rate" in capsys.readouterr().err


# -- the best checkpoint ----------------------------------------------------------------------------------------------


@pytest.mark.trains
@pytest.mark.parametrize(
    ("selections", "best"), [([0.5, 0.9, 0.7], 2), ([0.5, 0.6, 0.7], 3), ([0.9, 0.9, math.nan], 1), ([0.2, 0.9, math.nan], 2)]
)
def test_the_checkpoint_of_the_largest_selection_is_kept_also_when_it_is_not_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, selections: list[float], best: int
) -> None:
    coming = [math.nan, *selections]
    seen: list[dict[str, torch.Tensor]] = []

    def scripted(model: nn.Module, *_: object, **__: object) -> Snapshot:
        seen.append(weights(model))
        return replace(START, selection=coming[len(seen) - 1])

    monkeypatch.setattr(trainer_module, "take_snapshot", scripted)
    made = trainer(tmp_path, tiny_models.llama(), num_train_epochs=3, eval_strategy="epoch", save_strategy="epoch")
    made.train()
    assert made.state.best_global_step == 2 * best
    assert Path(made.state.best_model_checkpoint or "").name == f"checkpoint-{2 * best}"
    assert distance(weights(made.model), seen[best]) == 0.0
    assert len({tuple(w["lm_head.weight"].flatten().tolist()) for w in seen}) == 4
    left = {path.name for path in tmp_path.glob("checkpoint-*")}
    assert left == {f"checkpoint-{2 * best}", "checkpoint-6"} | ({"checkpoint-4"} if best == 3 else set())


def test_other_rows_may_be_looked_at(tmp_path: Path) -> None:
    made = trainer(tmp_path, tiny_models.llama(), eval_dataset={"forget": FORGET[:3], "retain": RETAIN[:4]})
    assert made.before == take_snapshot(tiny_models.llama(), {"forget": FORGET[:3], "retain": RETAIN[:4]})
    others: dict[Kind, list[Tokens]] = {"forget": FORGET[3:], "retain": RETAIN[4:]}
    metrics = made.evaluate(others)
    expected = take_snapshot(tiny_models.llama(), others, batch_size=8, before=made.before)
    assert metrics == expected.metrics()


def test_at_most_so_many_rows_are_looked_at_spread_over_all(tmp_path: Path) -> None:
    made = trainer(tmp_path, tiny_models.llama(), eval_rows=4)
    expected = {"forget": FORGET[::2], "retain": [RETAIN[i] for i in (0, 3, 6, 9)]}
    assert made.before == take_snapshot(tiny_models.llama(), expected)
