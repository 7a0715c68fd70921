"""Killed at any moment and started again, a run gives the weights of one that was left alone, bit for bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tiny_models
from d2unlearn.config import UnlearnSettings
from d2unlearn.errors import ArtifactError, ConfigError
from d2unlearn.training import unlearn
from d2unlearn.training.checkpoints import COMPLETE, last_complete_checkpoint
from d2unlearn.training.trainer import UnlearnTrainer
from d2unlearn.training.unlearn import run_unlearn

from .killed import Moment, exit_code, train_until, unlearn_until
from .runs import distance, trainer, unlearn_settings, weights

pytestmark = pytest.mark.trains

KILLED = -9
STEPS: dict[str, Any] = {
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 2,
    "save_strategy": "steps",
    "save_steps": 1,
}
"""8 forget rows: four steps an epoch, a checkpoint after each."""


# -- the trainer ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Dropout, so that the random state has to be taken up again too."""
    made = trainer(tmp_path_factory.mktemp("undisturbed"), tiny_models.gpt2(), **STEPS)
    made.train()
    return weights(made.model)


@pytest.mark.parametrize(
    ("moment", "number", "left"),
    [
        ("optimizer", 6, 5),
        *(pytest.param(*moment, marks=pytest.mark.slow) for moment in (("step", 4, 3), ("step", 5, 4), ("weights", 3, 2))),
        pytest.param("deletion", 2, 4, marks=pytest.mark.slow),
    ],
)
def test_a_killed_trainer_resumes_to_the_same_weights_bit_for_bit(
    tmp_path: Path, undisturbed: dict[str, torch.Tensor], moment: Moment, number: int, left: int
) -> None:
    """In the middle of an epoch (3 of 4 steps), at its end, with a half-written checkpoint, with a half-deleted one."""
    assert exit_code(train_until, tmp_path, tiny_models.gpt2, STEPS, moment, number) == KILLED
    found = {int(path.name.split("-")[1]) for path in tmp_path.glob("checkpoint-*")}
    assert max(found) == (number if moment in ("optimizer", "weights") else left)
    made = trainer(tmp_path, tiny_models.gpt2(), **STEPS)
    made.train(resume_from_checkpoint=True)
    assert made._initial_global_step == left
    assert made.state.global_step == 8
    assert distance(weights(made.model), undisturbed) == 0.0


def test_only_complete_checkpoints_are_gone_on_from_and_others_are_removed(tmp_path: Path) -> None:
    assert last_complete_checkpoint(tmp_path / "nowhere") is None
    for number, complete in ((9, True), (10, True), (100, False)):
        (tmp_path / f"checkpoint-{number}").mkdir()
        if complete:
            (tmp_path / f"checkpoint-{number}" / COMPLETE).touch()
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert not (tmp_path / "checkpoint-100").exists()


def test_resuming_from_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-3").mkdir()
    made = trainer(tmp_path, tiny_models.llama())
    with pytest.raises(ConfigError, match="no checkpoint whose writing was finished"):
        made.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    with pytest.raises(ConfigError, match="no complete checkpoint"):
        made.train(resume_from_checkpoint=True)


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> UnlearnSettings:
    return unlearn_settings(tmp_path_factory.mktemp("given"))


def artifact_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def alone(given: UnlearnSettings) -> Path:
    return run_unlearn(given)


MOMENTS: list[tuple[Moment, int, str | None]] = [
    ("step", 2, None),
    ("step", 6, "checkpoint-4"),
    ("weights", 2, None),
    ("mark", 8, "checkpoint-6"),
    ("manifest", 0, "checkpoint-8"),
]
SHORT: list[tuple[Moment, int, str | None]] = [("optimizer", 6, "checkpoint-4"), ("publish", 0, "checkpoint-8")]
"""Half a checkpoint, and the last moment before the artifact is in its place; the others are run by hand."""


@pytest.mark.parametrize(
    ("moment", "number", "going_on_from"),
    [*SHORT, *(pytest.param(*moment, marks=pytest.mark.slow) for moment in MOMENTS)],
)
def test_a_killed_command_run_again_gives_the_artifact_of_one_left_alone(
    tmp_path: Path,
    given: UnlearnSettings,
    alone: Path,
    capsys: pytest.CaptureFixture[str],
    moment: Moment,
    number: int,
    going_on_from: str | None,
) -> None:
    settings = replace(given, output=str(tmp_path / "artifact"))
    assert exit_code(unlearn_until, settings, moment, number) == KILLED
    assert [path.name for path in tmp_path.iterdir()] == ["artifact.partial"]
    folder = run_unlearn(settings)
    said = capsys.readouterr().err
    assert (f"going on from {going_on_from}" in said) == (going_on_from is not None)
    assert ("going on from" in said) == (going_on_from is not None)
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]
    assert distance(artifact_weights(folder), artifact_weights(alone)) == 0.0
    ours, theirs = (json.loads((each / "d2_manifest.json").read_text()) for each in (folder, alone))
    assert {path.name for path in folder.iterdir()} == {path.name for path in alone.iterdir()}
    assert ours["training"]["history"] == theirs["training"]["history"]
    assert ours["training"]["kept_checkpoint"] == theirs["training"]["kept_checkpoint"]
    assert ours["key"] == theirs["key"]


def test_a_command_killed_after_its_artifact_was_in_place_is_done_and_tidies_up(tmp_path: Path, given: UnlearnSettings) -> None:
    settings = replace(given, output=str(tmp_path / "artifact"), epochs=1)
    assert exit_code(unlearn_until, settings, "published", 0) == KILLED
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifact", "artifact.partial"]
    run_unlearn(settings)
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


def test_a_killed_adapter_run_gives_the_same_weights_too(tmp_path: Path, given: UnlearnSettings) -> None:
    settings = [replace(given, output=str(tmp_path / name), lora=True, epochs=2) for name in ("alone", "killed")]
    run_unlearn(settings[0])
    assert exit_code(unlearn_until, settings[1], "step", 4) == KILLED
    run_unlearn(settings[1])
    found, expected = (artifact_weights(tmp_path / name) for name in ("killed", "alone"))
    assert distance(found, expected) == 0.0
    assert distance(found, artifact_weights(Path(given.model))) > 1e-3


def test_an_interrupted_run_is_not_taken_up_with_other_settings(tmp_path: Path, given: UnlearnSettings) -> None:
    settings = replace(given, output=str(tmp_path / "artifact"))
    assert exit_code(unlearn_until, settings, "step", 4) == KILLED
    with pytest.raises(ArtifactError, match=r"artifact\.partial belongs to an interrupted run with other inputs or settings"):
        run_unlearn(replace(settings, seed=1))
    assert (tmp_path / "artifact.partial" / "checkpoints" / "checkpoint-2" / COMPLETE).is_file()


def test_a_done_run_returns_at_once(given: UnlearnSettings, alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(unlearn, "UnlearnTrainer", never)
    before = {path.name: path.stat().st_mtime_ns for path in alone.iterdir()}
    assert run_unlearn(given) == alone
    assert {path.name: path.stat().st_mtime_ns for path in alone.iterdir()} == before


def test_resuming_does_not_run_the_reference_again(
    tmp_path: Path, given: UnlearnSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(given, output=str(tmp_path / "artifact"), epochs=2)
    assert exit_code(unlearn_until, settings, "step", 4) == KILLED
    from d2unlearn.training import frozen

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the reference ran again")

    monkeypatch.setattr(frozen, "_run", never)
    assert run_unlearn(settings) == tmp_path / "artifact"


def test_the_trainer_s_own_checkpoints_hold_all_that_resuming_needs(tmp_path: Path) -> None:
    made: UnlearnTrainer = trainer(tmp_path, tiny_models.llama(), **STEPS)
    made.train()
    names = {path.name for path in (tmp_path / "checkpoint-8").iterdir()}
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", COMPLETE} <= names
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-7", "checkpoint-8"}
