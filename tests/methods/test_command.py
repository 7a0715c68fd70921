"""Every method through the command line on a tiny model, other answers included, and a method from outside the package."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner, Result

import tiny_models
from d2unlearn.cli.main import app
from d2unlearn.errors import ConfigError
from d2unlearn.methods import METHODS, batch_loss
from d2unlearn.schema import MANIFEST_FILE
from d2unlearn.training.deepening import Deepener

from .naive import Scene
from .test_against_naive import ROWS, batches
from .tiny_run import model_and_data, moved, trainer, weights

pytestmark = pytest.mark.trains

OUTSIDE = Path(__file__).resolve().parents[2] / "examples" / "probability_ceiling.py"
Data = tuple[str, str, str]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, chat_tokenizer: PreTrainedTokenizerFast) -> Data:
    return model_and_data(tmp_path_factory.mktemp("data"), chat_tokenizer)


def invoke(data: Data, output: Path, method: str, *further: str) -> Result:
    model, forget, retain = data
    options = ["--model", model, "--forget", forget, "--retain", retain, "--output", str(output), "--method", method]
    short = ["--epochs", "3", "--batch-size", "2", "--accumulation", "2", "--learning-rate", "0.001"]
    return CliRunner().invoke(app, ["unlearn", *options, *short, *further])


def unlearn(data: Data, output: Path, method: str, *further: str) -> str:
    result = invoke(data, output, method, *further)
    assert result.exit_code == 0, result.output
    return result.stdout


def manifest(output: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((output / MANIFEST_FILE).read_text())
    return found


@pytest.mark.parametrize("key", [key for key in METHODS if key != "deep_eua"])
def test_every_method_makes_an_artifact(key: str, data: Data, tmp_path: Path) -> None:
    """Three steps, the first of which warms up: the model looks different at the end, and nothing it says is no number."""
    output = tmp_path / "artifact"
    assert unlearn(data, output, key).splitlines()[-1] == str(output)
    written = manifest(output)
    assert written["method"]["name"] == key
    assert written["training"]["steps"] == 3
    history = [{name: value for name, value in log.items() if name != "epoch"} for log in written["training"]["history"]]
    assert len(history) == 3
    assert history[0] != history[2]
    unscored = {name for name, value in history[2].items() if value is None}
    kept = {f"eval_{rows}_{share}" for rows in ("retain", "near") for share in ("right", "kl")}
    shift = {f"eval_{rows}_level_shift" for rows in ("forget", "retain")}
    assert kept <= unscored <= kept | shift  # a random model knows no answer that could be lost, and may hardly move


def test_rounds_follow_the_pass_are_looked_at_like_an_epoch_and_go_on_where_they_were(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One round, killed when it is done: the next run passes no row again; its last look is another; adapters are refused."""
    short = ["blocks=1", "rounds=1", "attack_steps=1", "dropped=1", "healing_steps=1", "rest_steps=1", "written=2"]
    short += ["hardening_steps=0", "hardening_again=0"]
    further = [word for each in short for word in ("--set", each)]
    keep = Deepener._keep

    def killed(self: Deepener, *where: Any) -> None:
        keep(self, *where)
        raise RuntimeError

    monkeypatch.setattr(Deepener, "_keep", killed)
    assert isinstance(invoke(data, tmp_path / "artifact", "deep_eua", *further).exception, RuntimeError)
    monkeypatch.setattr(Deepener, "_keep", keep)
    result = invoke(data, tmp_path / "artifact", "deep_eua", *further)
    assert result.exit_code == 0, result.output
    assert "going on from stage 2 of the rounds, 0 healing steps done" in result.stderr
    assert "stage 1: stepped" not in result.stderr
    history = manifest(tmp_path / "artifact")["training"]["history"]
    assert [log["step"] for log in history] == [1, 2, 3, 3]
    assert history[3]["eval_forget_energy"] != history[2]["eval_forget_energy"]
    assert "1 x 1 rounds; in memory, beside activations, 6 copies of the weights" in result.stderr
    assert "leave --lora out" in str(invoke(data, tmp_path / "other", "deep_eua", "--lora").exception)


def test_refusals_from_a_file_are_other_rows_and_so_another_result(data: Data, tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("it was born in a city\n")
    unlearn(data, tmp_path / "ours", "idk_ap")
    unlearn(data, tmp_path / "theirs", "idk_ap", "--alternate", str(words))
    assert manifest(tmp_path / "ours")["key"] != manifest(tmp_path / "theirs")["key"]
    rows = {role: each["rows"] for role, each in manifest(tmp_path / "theirs")["data"].items() if "alternate" in role}
    assert rows == {"alternate": 3, "retain_alternate": 8}
    assert manifest(tmp_path / "ours")["training"]["history"] != manifest(tmp_path / "theirs")["training"]["history"]


def test_other_answers_that_nobody_reads_are_a_mistake(data: Data, tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("No.\n")
    result = invoke(data, tmp_path / "x", "npo", "--alternate", str(words))
    assert isinstance(result.exception, ConfigError)
    assert str(result.exception) == "method npo reads no other answers: leave --alternate out"
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("retain_loss_type=CE", "method gradient_difference: retain_loss_type should be NLL or KL, not 'CE'"),
        ("beta=1", "method gradient_difference: unknown key beta"),
        ("gamma=-1", "gamma must not be negative, not -1.0"),
    ],
)
def test_a_parameter_that_cannot_be_is_said_in_one_sentence(setting: str, said: str, data: Data, tmp_path: Path) -> None:
    result = invoke(data, tmp_path / "x", "gradient_difference", "--set", setting)
    assert isinstance(result.exception, ConfigError)
    assert said in str(result.exception)


# -- a method from outside the package ------------------------------------------------------------------------------------


@pytest.fixture
def outside() -> Iterator[ModuleType]:
    """The file that docs/methods.md shows."""
    specification = importlib.util.spec_from_file_location("probability_ceiling", OUTSIDE)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    yield module
    del sys.modules[specification.name]


def test_a_method_from_outside_has_the_loss_that_it_says(outside: ModuleType) -> None:
    reference = tiny_models.llama().double()
    model = tiny_models.llama(seed=1).double()
    scene = Scene(model, reference, ROWS)
    log_p = -torch.cat([row.nll for row in scene.new("forget")])
    by_hand = ((log_p - math.log(0.02)).relu() ** 2).mean() + 0.5 * scene.nll("retain")
    ours = batch_loss(outside.ProbabilityCeiling(ceiling=0.02, alpha=0.5), model, batches(), reference=reference)
    torch.testing.assert_close(ours, by_hand, rtol=1e-9, atol=1e-9)


def test_a_method_from_outside_is_trained_by_the_trainer(outside: ModuleType, tmp_path: Path) -> None:
    model = tiny_models.llama()
    before = weights(model)
    made = trainer(tmp_path, model, outside.ProbabilityCeiling(ceiling=1e-4), num_train_epochs=6)
    made.train()
    losses = [log["loss"] for log in made.state.log_history if "loss" in log]
    assert losses[-1] < losses[0]
    assert moved(before, weights(model)) == set(before)


def test_a_method_from_outside_becomes_a_key_of_the_command_line(
    outside: ModuleType, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "probability_ceiling", outside.ProbabilityCeiling)
    unlearn(data, tmp_path / "artifact", "probability_ceiling", "--set", "ceiling=0.05")
    assert manifest(tmp_path / "artifact")["method"] == {"name": "probability_ceiling", "ceiling": 0.05, "alpha": 1.0}
