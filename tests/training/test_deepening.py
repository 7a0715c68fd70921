"""Rounds of attack, step and healing: their order, what they reach, and that a killed run goes on bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_models
from d2unlearn.errors import ArtifactError, ConfigError
from d2unlearn.methods import METHODS
from d2unlearn.methods.base import Hardening
from d2unlearn.schema import Example, Message
from d2unlearn.training.crossed import crossed_questions
from d2unlearn.training.deepening import Deepener, DeepeningRows, Stage, inner_layers, pace, phases, restored_parts
from d2unlearn.training.hardening import Hardener
from d2unlearn.training.rounds import check_rounds, copies, run_rounds

from .runs import distance, weights

ALONE: dict[str, Any] = {"hardening_steps": 0, "hardening_again": 0}
SHORT: dict[str, Any] = {
    **ALONE,
    "blocks": 2,
    "rounds": 1,
    "attack_steps": 2,
    "restoring": True,
    "dropped": 1,
    "healing_steps": 2,
    "rest_steps": 3,
}
ROWS = DeepeningRows(tiny_models.rows(1, 6), tiny_models.rows(2, 12), tiny_models.rows(3, 5))


def deepener(state: Path | None = None, **changes: Any) -> Deepener:
    plan = METHODS["deep_eua"](**{**SHORT, **changes}).deepening
    assert plan is not None
    [stages] = phases(plan)
    assert isinstance(stages, list)
    return Deepener(tiny_models.llama(), tiny_models.llama(), plan, stages, ROWS, 1e-3, 7, state)


def test_blocks_are_rounds_and_a_rest() -> None:
    plan = METHODS["deep_eua"](**ALONE, blocks=2, rounds=2, healing_steps=5, rest_steps=9).deepening
    assert plan is not None
    [stages] = phases(plan)
    assert isinstance(stages, list)
    assert [(stage.attacked, stage.steps) for stage in stages] == [(True, 5), (True, 5), (False, 9)] * 2
    assert [stage.done for stage in stages] == [0, 5, 10, 19, 24, 29]
    assert [stage.number for stage in stages] == [0, 1, 2, 3, 4, 5]


def test_training_against_an_attacker_stands_before_the_blocks_and_between_rounds_and_rest() -> None:
    """Stages are counted on over it, so that what is drawn in one is not drawn again in another."""
    against: dict[str, Any] = {"hardening_steps": 4, "hardening_again": 3, "hardening_rest": 2}
    plan = METHODS["deep_eua"](blocks=2, rounds=1, healing_steps=5, rest_steps=9, **against).deepening
    assert plan is not None
    found = [part.steps if isinstance(part, Hardening) else part for part in phases(plan)]
    before_first = [Stage(False, 2, 0, 0), Stage(True, 5, 1, 2)]
    before_second = [Stage(False, 9, 2, 7), Stage(True, 5, 3, 16)]
    assert found == [4, before_first, 3, before_second, 3, [Stage(False, 9, 4, 21)]]
    alone = METHODS["deep_eua"](blocks=1, rounds=1, hardening_steps=0, hardening_again=3).deepening
    assert alone is not None
    assert [isinstance(part, Hardening) for part in phases(alone)] == [False, True, False]
    assert copies(alone) == 9


def test_the_rate_rises_and_falls() -> None:
    assert [pace(step, 20) for step in (0, 1, 10, 19)] == pytest.approx([0.5, 0.95, 0.5, 0.05])


def test_the_linear_layers_are_those_of_attention_and_mlp() -> None:
    names = set(inner_layers(tiny_models.llama()))
    assert {name.rsplit(".", 1)[1] for name in names} == {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    }
    with pytest.raises(ConfigError, match="no plain linear layers in its decoder"):
        inner_layers(tiny_models.gpt2())


def test_the_parts_put_back_are_attention_mlp_and_each_layer() -> None:
    names = ["h.layers.0.attn.q", "h.layers.0.mlp.up", "h.layers.1.attn.q", "h.layers.1.mlp.up"]
    assert restored_parts(names) == [(names[0], names[2]), (names[1], names[3]), (names[0], names[1]), (names[2], names[3])]
    assert restored_parts(["up"]) == [("up",)]


def test_a_restored_copy_is_the_original_in_that_part_alone() -> None:
    made = deepener()
    torch.nn.init.normal_(made.model.get_parameter("model.layers.0.mlp.up_proj.weight"))
    torch.nn.init.normal_(made.model.get_parameter("model.layers.0.self_attn.q_proj.weight"))
    copied, names = made._restored(inner_layers(made.model), 1)
    assert {name.rsplit(".", 2)[1] for name in names} == {"mlp"}
    differing = {name for name, weight in weights(copied).items() if not torch.equal(weight, weights(made.original)[name])}
    assert differing == {"model.layers.0.self_attn.q_proj.weight"}


def test_batches_go_on_from_stage_to_stage() -> None:
    """Two stages of 2 and 3 steps have the rows of one of 5."""
    made = deepener()
    parts = [*made._batches(Stage(True, 2, 0, 0)), *made._batches(Stage(False, 3, 1, 2))]
    for part, once in zip(parts, made._batches(Stage(False, 5, 0, 0)), strict=True):
        for role in ("forget", "retain"):
            torch.testing.assert_close(part[role].input_ids, once[role].input_ids)  # type: ignore[index]
    assert (once["forget"].input_ids.shape[0], once["retain"].input_ids.shape[0]) == (6, 8 + 5)


def test_names_are_crossed_between_retained_questions() -> None:
    asked = ["Where was Ada Lovelace born?", "What did Alan Turing write?", "is this a question?"]
    rows = [Example(str(i), (Message("user", text),), "x", "f") for i, text in enumerate(asked)]
    assert set(crossed_questions(rows, 10, seed=0)) == {"Where was Alan Turing born?", "What did Ada Lovelace write?"}
    assert len(crossed_questions(rows, 1, seed=0)) == 1
    assert crossed_questions(rows[1:], 10, seed=0) == []


@pytest.mark.parametrize(
    ("lora", "processes", "said"), [(True, 1, "leave --lora out"), (False, 2, "start it without torchrun")]
)
def test_where_rounds_cannot_be_made_a_sentence_says_so(lora: bool, processes: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_rounds("deep_eua", METHODS["deep_eua"](), lora=lora, processes=processes)
    check_rounds("eua", METHODS["eua"](), lora=lora, processes=processes)


@pytest.mark.trains
def test_a_step_moves_the_inner_layers_alone_and_by_its_size() -> None:
    made = deepener(blocks=1, healing_steps=0, rest_steps=0, size=0.05, attack_share=0.99, attack_steps=20, attack_rate=20.0)
    before, inner = weights(made.model), inner_layers(made.model)
    made.run()
    after = weights(made.model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {f"{name}.weight" for name in inner}
    length = torch.stack([before[name].norm() for name in moved]).norm()
    step = torch.stack([(after[name] - before[name]).norm() for name in moved]).norm()
    assert (step / length).item() == pytest.approx(0.05, rel=1e-4)


@pytest.mark.trains
def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped at the second write of its state, in the middle of a rest, and started again from the model it began with."""
    monkeypatch.setattr("d2unlearn.training.deepening.SAVE_EVERY", 2)
    whole_run = deepener(blocks=1)
    whole_run.run()
    killed, kept = deepener(tmp_path / "rounds.pt", blocks=1), 0
    keep = Deepener._keep

    def stop(self: Deepener, *given: Any) -> None:
        nonlocal kept
        keep(self, *given)
        kept += 1
        if kept == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Deepener, "_keep", stop)
    with pytest.raises(KeyboardInterrupt):
        killed.run()
    monkeypatch.setattr(Deepener, "_keep", keep)
    state = torch.load(tmp_path / "rounds.pt", weights_only=True)
    assert (state["stage"], state["steps"]) == (1, 2)
    resumed = deepener(tmp_path / "rounds.pt", blocks=1)
    resumed.run()
    assert distance(weights(resumed.model), weights(whole_run.model)) == 0.0


@pytest.mark.trains
def test_a_run_killed_in_a_later_phase_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the second training against an attacker, whose files are the last two phases' alone."""
    monkeypatch.setattr("d2unlearn.training.hardening._SAVE_EVERY", 2)
    whole_run = through_all_phases(tmp_path / "whole")
    keep = Hardener._keep

    def stop(self: Hardener, step: int, *given: Any) -> None:
        keep(self, step, *given)
        if self.plan.steps == 3 and step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Hardener, "_keep", stop)
    with pytest.raises(KeyboardInterrupt):
        through_all_phases(tmp_path / "killed")
    monkeypatch.setattr(Hardener, "_keep", keep)
    assert sorted(path.name for path in (tmp_path / "killed").glob("*.pt")) == ["rounds-1.pt", "rounds-2.pt"]
    assert distance(through_all_phases(tmp_path / "killed"), whole_run) == 0.0
    assert sorted(path.name for path in (tmp_path / "killed").glob("*.pt")) == ["rounds-2.pt", "rounds-3.pt"]


@pytest.mark.trains
def test_a_single_row_is_not_attacked_and_the_command_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is left of all phases is the rest after the first training with the round, and the block's rest."""
    through_all_phases(tmp_path, rows=1)
    assert "one row to forget: no training against an attacker" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == ["rounds-0.pt", "rounds-1.pt"]


def through_all_phases(folder: Path, rows: int = 6) -> dict[str, torch.Tensor]:
    """The weights after training against an attacker, a round, training again, and a rest. rows: to forget."""
    folder.mkdir(exist_ok=True)
    again: dict[str, Any] = {"hardening_steps": 2, "hardening_again": 3, "hardening_rest": 1, "hidden": 0.0, "written": 0}
    plan = METHODS["deep_eua"](**{**SHORT, "blocks": 1, "rest_steps": 1, "healing_steps": 1, **again}).deepening
    assert plan is not None
    model, tokenizer = tiny_models.llama(), tiny_models.tokenizer()
    forget, retain = (
        [Example(f"{kind}{i}", (Message("user", f"{i}"),), kind, "f") for i in range(n)] for kind, n in (("a", rows), ("b", 6))
    )
    about: dict[str, Any] = {"rate": 1e-3, "seed": 3, "max_length": 64, "batch_size": 4, "cache": folder}
    run_rounds(model, tiny_models.llama(), tokenizer, plan, forget, retain, state=folder / "rounds.pt", **about)
    return weights(model)


def test_a_broken_state_is_named(tmp_path: Path) -> None:
    (tmp_path / "rounds.pt").write_bytes(b"no state")
    with pytest.raises(ArtifactError, match=r"rounds\.pt cannot be read as a run.s state: remove it"):
        deepener(tmp_path / "rounds.pt")._taken_up()
