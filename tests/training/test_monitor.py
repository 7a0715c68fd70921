"""What a person steers by: values against a naive restatement, the rule by which a checkpoint is kept, plain warnings."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import tiny_models
from d2unlearn.data.batching import pad_tokens
from d2unlearn.errors import ConfigError
from d2unlearn.head import head_of
from d2unlearn.schema import Kind, Tokens
from d2unlearn.stats import harmonic_mean
from d2unlearn.training import trainer as trainer_module
from d2unlearn.training.monitor import Snapshot, epoch_lines, first_look, how_far, take_snapshot, warning_of

from .runs import FORGET, RETAIN, distance, silent, trainer, weights

ROWS: dict[Kind, list[Tokens]] = {"forget": FORGET, "retain": RETAIN}
NOTHING = -math.log(120)
START = Snapshot(
    -20.0, -19.0, forget_probability=0.9, retain_probability=0.8, retain_nll=0.2, auroc=0.5, retain_centred_energy=-19.0
)


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


def half_known(row: Tokens) -> Tokens:
    """The row with every second token of its answer, the first among them, as the untouched model would have it."""
    ids, start = list(row.input_ids), row.answer_mask.index(True)
    for index in range(start, len(ids), 2):
        with torch.no_grad():
            ids[index] = int(tiny_models.llama()(input_ids=torch.tensor([ids[:index]])).logits[0, -1].argmax())
    return replace(row, input_ids=tuple(ids))


def test_selection_is_the_harmonic_mean_of_erased_kept_and_separation() -> None:
    """By hand: erased 0.9, kept 0.4 / 0.8, AUROC 0.75 give 3 / (1/0.9 + 1/0.5 + 1/0.75) = 0.675."""
    assert harmonic_mean([0.9, 0.4 / 0.8, 0.75]) == pytest.approx(0.675)
    unchanged = take_snapshot(tiny_models.llama(), KNOWN)
    assert 0.4 < unchanged.retain_right < 0.8
    assert unchanged.selection == pytest.approx(3 / (1 / (1 - unchanged.forget_probability) + 1 + 1 / unchanged.auroc))
    twice = replace(unchanged, retain_right=2 * unchanged.retain_right)
    found = take_snapshot(tiny_models.llama(), KNOWN, before=twice)
    assert found.kept == pytest.approx(0.5)
    assert found.selection == pytest.approx(3 / (1 / (1 - found.forget_probability) + 2 + 1 / found.auroc))
    better = take_snapshot(tiny_models.llama(), KNOWN, before=replace(unchanged, retain_right=1e-9))
    assert better.selection == pytest.approx(unchanged.selection)  # more than was there counts as all of it


KNOWN: dict[Kind, list[Tokens]] = {"forget": FORGET, "retain": [half_known(row) for row in RETAIN]}


def moved_head(model: nn.Module, scale: float) -> nn.Module:
    """The same model with another LM head: other logits from the same hidden states."""
    torch.manual_seed(3)
    with torch.no_grad():
        model.lm_head.weight += scale * torch.randn_like(model.lm_head.weight)
    return model


def dense(model: nn.Module, row: Tokens) -> torch.Tensor:
    """The row's logits [n, V] where its answer's tokens are predicted."""
    start = row.answer_mask.index(True)
    with torch.no_grad():
        return tiny_models.full_logits(model, pad_tokens([row], pad_id=0))[0].double()[start - 1 : -1]


def test_what_stayed_is_measured_without_the_end_token_against_the_original_of_full_logits() -> None:
    """Every second retained row ends with an end token, which counts neither for what is right nor for the KL.

    Of the last two rows the original knows nothing: they count for nothing that is kept.
    """
    retain = [replace(half_known(row), ends=bool(index % 2)) for index, row in enumerate(RETAIN[:-2])] + RETAIN[-2:]
    model = tiny_models.llama()
    look = first_look(model, {"forget": FORGET, "retain": retain}, copy.deepcopy(head_of(model)), batch_size=3)
    old, new = tiny_models.llama(), moved_head(model, 0.1)
    found = take_snapshot(new, look.rows, before=look.before, original=look.original)
    for name, right, kl in (("retain", found.retain_right, found.retain_kl), ("near", found.near_right, found.near_kl)):
        rights, divergences = [], []
        for row in [row for row in look.rows[name] if row not in RETAIN[-2:]]:
            p, q = (dense(each, row).log_softmax(-1) for each in (old, new))
            targets = torch.tensor(row.input_ids[-len(p) :])
            counted = slice(None, -1 if row.ends else None)
            rights.append((q.argmax(-1) == targets)[counted].double().mean().item())
            divergences.append((p.exp() * (p - q)).sum(-1)[counted].mean().item())
        assert right == pytest.approx(np.mean(rights))
        assert kl == pytest.approx(np.mean(divergences), rel=1e-4)
    shares = [math.exp(-found.retain_kl), math.exp(-found.near_kl)]
    shares += [min(1, found.retain_right / look.before.retain_right), min(1, found.near_right / look.before.near_right)]
    assert found.kept == pytest.approx(min(shares))
    assert max(shares[:2]) < 0.98


def test_the_lines_of_an_evaluation_say_what_stayed() -> None:
    now = replace(
        START, retain_right=0.94, near_right=0.8125, retain_kl=0.125, near_kl=0.25, kept=0.75, forget_level_shift=0.82
    )
    _, below = epoch_lines(now, "epoch 3 of 9", {})
    assert "share of level shift 82% / - | tokens right: retained 0.940, near 0.812 | KL to the original 0.125 / 0.250" in below
    assert below.endswith("kept 0.750")


@pytest.mark.parametrize(
    ("seconds", "before", "said"),
    [
        (math.nan, False, "epoch 3 of 36"),
        (0.0, False, "epoch 3 of 36"),
        (42.4, False, "epoch 3 of 36, 42 s left"),
        (150.0, True, "epoch 3 of at most 36, at most 2 min left"),
        (6 * 3600.0, False, "epoch 3 of 36, 6.0 h left"),
    ],
)
def test_a_line_says_which_epoch_of_how_many_and_how_long_it_will_take(seconds: float, before: bool, said: str) -> None:
    assert how_far(2.9, 36.0, seconds, may_end_before=before) == said


def test_nothing_can_be_lost_of_what_the_original_does_not_know() -> None:
    model = tiny_models.llama()
    look = first_look(model, ROWS, copy.deepcopy(head_of(model)))
    found = take_snapshot(moved_head(model, 0.1), look.rows, before=look.before, original=look.original)
    assert look.original.hidden == {}
    assert math.isnan(found.retain_kl + found.retain_right)
    assert found.kept == 1.0


def test_the_first_look_is_the_snapshot_of_an_untouched_model_and_a_second_one_finds_nothing_moved() -> None:
    model = tiny_models.llama()
    look = first_look(model, KNOWN, head_of(model))
    expected = replace(take_snapshot(tiny_models.llama(), KNOWN), near_right=look.before.near_right).metrics()
    assert look.before.metrics() == pytest.approx(expected, rel=1e-5, nan_ok=True)
    assert look.rows["near"] != KNOWN["retain"]
    assert set(look.rows["near"]) == set(KNOWN["retain"])  # fewer than twenty: all of them, the nearest first
    again = take_snapshot(model, look.rows, before=look.before, original=look.original)
    assert again.kept == pytest.approx(1.0, abs=1e-6)
    assert (again.retain_kl, again.near_kl) == pytest.approx((0.0, 0.0), abs=1e-6)
    assert math.isnan(again.forget_level_shift)  # nothing moved by a tenth of a nat


def test_a_constant_on_all_logits_is_a_level_shift_and_loses_nothing() -> None:
    """A bias of -3 on every logit: energies rise by 3 nats, and no number of what is known moves."""
    model = tiny_models.llama()
    look = first_look(model, KNOWN, head_of(model))
    model.lm_head.bias = nn.Parameter(torch.full((120,), -3.0))
    found = take_snapshot(model, look.rows, before=look.before, original=look.original)
    assert found.forget_energy == pytest.approx(look.before.forget_energy + 3, abs=1e-4)
    assert (found.forget_level_shift, found.retain_level_shift) == pytest.approx((1.0, 1.0), abs=1e-5)
    assert found.forget_mean_logit == pytest.approx(look.before.forget_mean_logit - 3, abs=1e-4)
    assert found.forget_centred_energy == pytest.approx(look.before.forget_centred_energy, abs=1e-4)
    assert found.forget_entropy == pytest.approx(look.before.forget_entropy, abs=1e-4)
    assert found.kept == pytest.approx(1.0, abs=1e-5)
    assert warning_of(look.before, replace(found, retain_energy=40.0), energy_of_nothing=NOTHING) is None


def test_flatter_logits_of_the_same_mean_are_no_level_shift() -> None:
    model = tiny_models.llama()
    with torch.no_grad():  # logits of mean zero at every position
        model.lm_head.weight -= model.lm_head.weight.mean(dim=0)
        model.lm_head.weight *= 20
    look = first_look(model, ROWS, copy.deepcopy(head_of(model)))
    with torch.no_grad():
        model.lm_head.weight *= 0.1
    found = take_snapshot(model, look.rows, before=look.before, original=look.original)
    assert found.forget_entropy > look.before.forget_entropy + 0.5
    assert found.forget_level_shift == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize(
    ("retain_energy", "retain_nll"),
    [(-19.0, 0.2), (-25.0, 0.1), (-13.0, 0.2), (-19.0, 1.1)],
)
def test_a_model_that_keeps_what_it_should_is_not_warned_of(retain_energy: float, retain_nll: float) -> None:
    """Room: from -19 to -log 120 = -4.79 nats. Half of it, 7.1, may go."""
    now = replace(START, retain_centred_energy=retain_energy, retain_nll=retain_nll)
    assert warning_of(START, now, energy_of_nothing=NOTHING) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"retain_centred_energy": -11.8}, "retained centred energy rose from -19.00 to -11.80"),
        ({"retain_nll": 1.3}, "retained NLL grew from 0.200 to 1.300"),
        ({"retain_nll": math.nan}, "no longer a number"),
        ({"retain_nll": math.inf}, "no longer a number"),
        ({"retain_energy": math.nan}, "no longer a number"),
        ({"retain_centred_energy": 500.0, "retain_nll": 9.0}, "retained centred energy rose"),
    ],
)
def test_a_model_that_is_being_destroyed_is_warned_of(changes: dict[str, float], said: str) -> None:
    warning = warning_of(START, replace(START, **changes), energy_of_nothing=NOTHING)
    assert warning is not None
    assert said in warning
    assert "lower the learning rate" in warning


def test_a_centred_energy_that_begins_near_that_of_nothing_has_two_nats_of_room_at_least() -> None:
    before = replace(START, retain_centred_energy=-5.0)
    assert warning_of(before, replace(before, retain_centred_energy=-4.2), energy_of_nothing=NOTHING) is None
    warning = warning_of(before, replace(before, retain_centred_energy=-3.9), energy_of_nothing=NOTHING)
    assert warning is not None
    assert "retained centred energy rose" in warning


def test_what_a_warm_up_does_is_no_destruction_unless_no_number_is_left() -> None:
    lost = replace(START, retain_nll=9.0)
    assert warning_of(START, lost, energy_of_nothing=NOTHING, warming_up=True) is None
    nothing = warning_of(START, replace(START, retain_nll=math.nan), energy_of_nothing=NOTHING, warming_up=True)
    assert nothing is not None
    assert "no longer a number" in nothing


@pytest.mark.parametrize(("warmup", "steps", "warned"), [(1.0, 2, False), (0.5, 2, True), (1.0, 4, False), (2.0, 4, True)])
def test_the_warning_looks_past_the_warm_up_but_not_past_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], warmup: float, steps: int, warned: bool
) -> None:
    """An epoch has two steps; `steps` were taken of the four, at a model whose head was destroyed."""
    made = trainer(tmp_path, tiny_models.llama(), warmup_epochs=warmup)
    made.state.max_steps, made.state.global_step = 4, steps
    moved_head(made.model, 30.0)
    made.evaluate()
    assert ("the model is being destroyed" in capsys.readouterr().err) == (warned or steps == 4)


@pytest.mark.trains
@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_unlearning_at_a_sound_rate_warns_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str], family: str) -> None:
    trainer(tmp_path, tiny_models.FAMILIES[family](), eval_strategy="epoch", num_train_epochs=3).train()
    assert "destroyed" not in capsys.readouterr().err


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
    seen: list[dict[str, torch.Tensor]] = []

    def scripted(model: nn.Module, *_: object, **__: object) -> Snapshot:
        seen.append(weights(model))
        return replace(START, selection=selections[len(seen) - 1])

    monkeypatch.setattr(trainer_module, "take_snapshot", scripted)
    made = trainer(tmp_path, tiny_models.llama(), num_train_epochs=3, eval_strategy="epoch", save_strategy="epoch")
    made.train()
    assert made.state.best_global_step == 2 * best
    assert Path(made.state.best_model_checkpoint or "").name == f"checkpoint-{2 * best}"
    assert distance(weights(made.model), seen[best - 1]) == 0.0
    assert len({tuple(w["lm_head.weight"].flatten().tolist()) for w in seen}) == 3
    left = {path.name for path in tmp_path.glob("checkpoint-*")}
    assert left == {f"checkpoint-{2 * best}", "checkpoint-6"}
    assert [path.parent.name for path in tmp_path.glob("checkpoint-*/optimizer.pt")] == ["checkpoint-6"]


def looked_at(rows: dict[Kind, list[Tokens]]) -> Snapshot:
    """What an untouched model's first look at these rows finds."""
    model = tiny_models.llama()
    return first_look(model, rows, head_of(model)).before


def test_other_rows_may_be_looked_at(tmp_path: Path) -> None:
    made = trainer(tmp_path, tiny_models.llama(), eval_dataset={"forget": FORGET[:3], "retain": RETAIN[:4]})
    assert made.before == looked_at({"forget": FORGET[:3], "retain": RETAIN[:4]})
    others: dict[Kind, list[Tokens]] = {"forget": FORGET[3:], "retain": RETAIN[4:]}
    metrics = made.evaluate(others)
    expected = take_snapshot(tiny_models.llama(), others, batch_size=8, before=made.before).metrics()
    assert metrics == pytest.approx(expected, nan_ok=True)


def test_at_most_so_many_rows_are_looked_at_spread_over_all(tmp_path: Path) -> None:
    made = trainer(tmp_path, tiny_models.llama(), eval_rows=4)
    assert made.before == looked_at({"forget": FORGET[::2], "retain": [RETAIN[i] for i in (0, 3, 6, 9)]})


def test_neighbours_given_are_looked_at_and_others_are_the_nearest_of_the_retained(tmp_path: Path) -> None:
    made = trainer(tmp_path, tiny_models.llama(), eval_dataset={"near": RETAIN[:2]})
    assert made.watched == {"forget": FORGET, "retain": RETAIN, "near": RETAIN[:2]}
    with pytest.raises(ConfigError, match='may have "near"'):
        trainer(tmp_path, tiny_models.llama(), eval_dataset={"far": RETAIN[:2]})
