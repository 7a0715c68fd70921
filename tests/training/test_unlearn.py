"""`run_unlearn`: the artifact and its manifest, what is refused, and what a failure leaves: nothing."""

from __future__ import annotations

import errno
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import tiny_models
from d2unlearn.config import UnlearnSettings
from d2unlearn.data.holdout import hold_out
from d2unlearn.data.records import content_hash, read_examples
from d2unlearn.errors import ArtifactError, ConfigError, D2Error, DataError
from d2unlearn.models import load_model
from d2unlearn.training import trainer as trainer_module
from d2unlearn.training import unlearn
from d2unlearn.training.monitor import Snapshot
from d2unlearn.training.outcome import outcome_lines
from d2unlearn.training.trainer import UnlearnTrainer
from d2unlearn.training.unlearn import DestroyedModelError, run_unlearn

from .runs import distance, trainer, unlearn_settings, write_rows

pytestmark = pytest.mark.trains


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> UnlearnSettings:
    return replace(unlearn_settings(tmp_path_factory.mktemp("given")), epochs=2)


@pytest.fixture(scope="module")
def made(given: UnlearnSettings) -> Path:
    return run_unlearn(given)


@pytest.fixture
def fresh(given: UnlearnSettings, tmp_path: Path) -> UnlearnSettings:
    return replace(given, output=str(tmp_path / "out" / "artifact"))


def manifest_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "d2_manifest.json").read_text())
    return found


# -- what comes out ---------------------------------------------------------------------------------------------------


def test_the_artifact_is_a_model_folder_that_transformers_loads(given: UnlearnSettings, made: Path) -> None:
    model, before = (AutoModelForCausalLM.from_pretrained(str(each)) for each in (made, given.model))
    assert distance(model.state_dict(), before.state_dict()) > 1e-3
    assert model.config.to_dict() == before.config.to_dict() | {"_name_or_path": str(made)}
    assert model.generation_config.to_dict() == before.generation_config.to_dict()
    ours, theirs = (AutoTokenizer.from_pretrained(str(each)) for each in (made, given.model))
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.chat_template == theirs.chat_template


def test_rows_set_aside_are_listed_and_none_of_them_was_trained_on(
    fresh: UnlearnSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained_on: list[list[str]] = []

    class Spy(UnlearnTrainer):
        def __init__(self, model: Any, args: Any, method: Any, forget: Any, retain: Any, *rest: Any, **others: Any) -> None:
            trained_on.append([content_hash(row) for row in retain])
            super().__init__(model, args, method, forget, retain, *rest, **others)

    monkeypatch.setattr(unlearn, "UnlearnTrainer", Spy)
    listed = manifest_of(run_unlearn(replace(fresh, epochs=1)))["held_out"]
    retained = [content_hash(row) for row in read_examples(fresh.retain)]
    assert len(listed) == 12
    assert set(listed).isdisjoint(trained_on[0])
    assert sorted([*listed, *trained_on[0]]) == sorted(retained)
    assert listed == [content_hash(row) for row in hold_out(read_examples(fresh.retain), seed=0).held_out]


def test_the_manifest_says_what_was_done_to_what(given: UnlearnSettings, made: Path) -> None:
    found = manifest_of(made)
    assert found["command"] == "unlearn"
    assert found["settings"]["seed"] == 0
    assert found["method"] == {"name": "eua", "ratio": 0.1, "temperature": 1.0, "gamma": 0.05, "alpha": 1.0}
    assert found["learning_rate"] == 0.01
    assert found["data"]["forget"]["rows"] == 8
    assert (found["data"]["retain"]["rows_trained_on"], found["data"]["retain"]["rows_held_out"]) == (12, 12)
    assert {"d2unlearn", "torch", "transformers", "peft"} <= found["versions"].keys()
    history = found["training"]["history"]
    assert [log["step"] for log in history] == [2, 4]
    best = max(history, key=lambda log: log["eval_selection"])
    assert found["training"]["kept_checkpoint"] == f"checkpoint-{best['step']}"
    assert "harmonic mean of erased, kept and AUROC" in found["training"]["kept_by"]


def test_the_best_checkpoint_is_what_the_artifact_holds(fresh: UnlearnSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripted: the second of four evaluations is the best, the third finds no numbers, which null stands for."""
    seen: list[dict[str, torch.Tensor]] = []

    def scripted(model: PreTrainedModel, *_: object, **__: object) -> Snapshot:
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        selection = [0.5, 0.9, math.nan, 0.7][len(seen) - 1]
        return Snapshot(-9.0, -8.0, 0.1, 0.2, math.inf if math.isnan(selection) else 1.0, 0.9, selection)

    monkeypatch.setattr(trainer_module, "take_snapshot", scripted)
    folder = run_unlearn(replace(fresh, epochs=4))
    assert distance(load_file(folder / "model.safetensors"), seen[1]) == 0.0
    training = manifest_of(folder)["training"]
    assert training["kept_checkpoint"] == "checkpoint-4"
    assert [log["eval_selection"] for log in training["history"]] == [0.5, 0.9, None, 0.7]
    assert [log["eval_retain_nll"] for log in training["history"]] == [1.0, 1.0, None, 1.0]


def test_an_adapter_stands_beside_its_merged_weights_and_both_say_the_same(fresh: UnlearnSettings) -> None:
    folder = run_unlearn(replace(fresh, lora=True))
    with pytest.warns(FutureWarning, match="is_gradient_checkpointing"):  # peft's own call
        adapted_model = PeftModel.from_pretrained(load_model(fresh.model), folder / "adapter").eval()
    ids = torch.arange(5, 40).reshape(5, 7)
    with torch.no_grad():
        merged, adapted, before = (
            each(input_ids=ids).logits for each in (load_model(folder), adapted_model, load_model(fresh.model))
        )
    torch.testing.assert_close(merged, adapted, rtol=1e-4, atol=1e-4)
    assert float((merged - before).abs().max()) > 0.05
    assert {path.name for path in (folder / "adapter").iterdir()} >= {"adapter_model.safetensors", "adapter_config.json"}


@pytest.mark.parametrize(("lora", "trained_in"), [(False, torch.float32), (True, torch.bfloat16)])
def test_sixteen_bit_weights_are_trained_in_float32_unless_frozen_and_saved_as_they_came(
    fresh: UnlearnSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: bool, trained_in: torch.dtype
) -> None:
    seen: list[torch.dtype] = []

    class Spy(UnlearnTrainer):
        def __init__(self, model: PreTrainedModel, *arguments: Any, **options: Any) -> None:
            seen.append(model.dtype)
            super().__init__(model, *arguments, **options)

    monkeypatch.setattr(unlearn, "UnlearnTrainer", Spy)
    settings = unlearn_settings(tmp_path, tiny_models.llama().to(torch.bfloat16))
    folder = run_unlearn(replace(settings, epochs=1, lora=lora, output=fresh.output))
    assert seen == [trained_in]
    found, before = (load_file(Path(each) / "model.safetensors") for each in (folder, settings.model))
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert distance(found, before) > 1e-3


@pytest.mark.parametrize("changes", [{"gradient_checkpointing": True}, {"bf16": True}, {"exclude_padded_rows": True}])
def test_switches_of_the_command_run_without_a_warning(fresh: UnlearnSettings, made: Path, changes: dict[str, bool]) -> None:
    folder = run_unlearn(replace(fresh, **changes))
    apart = distance(load_file(folder / "model.safetensors"), load_file(made / "model.safetensors"))
    assert apart < 1e-6 if "gradient_checkpointing" in changes else apart < 0.05


# -- what is said -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"learning_rate": "auto"}, "learning rate 0.0005 (chosen from the model's size)"),
        ({"learning_rate": "auto", "lora": True}, "learning rate 0.003 (chosen from the model's size, LoRA)"),
        ({"learning_rate": "2e-4"}, "learning rate 0.0002 (as given)"),
    ],
)
def test_the_learning_rate_is_announced_and_used(
    fresh: UnlearnSettings, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], said: str
) -> None:
    folder = run_unlearn(replace(fresh, epochs=1, **changes))
    assert "8 rows to forget, 12 to keep, 12 retained rows set aside; EUA(ratio=0.1" in (told := capsys.readouterr().err)
    assert said in told
    assert f"{manifest_of(folder)['learning_rate']:g}" in said


class Stopped(Exception):
    """The training's first step, which is all that a test wanted to see."""


def test_few_rows_are_passed_often_enough_by_itself(
    fresh: UnlearnSettings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planned: list[tuple[int, int]] = []

    def first_step(self: UnlearnTrainer, *_: object) -> torch.Tensor:
        planned.append((self.state.num_train_epochs, self.state.max_steps))
        raise Stopped

    monkeypatch.setattr(UnlearnTrainer, "training_step", first_step)
    with pytest.raises(Stopped):
        run_unlearn(replace(fresh, epochs="auto", batch_size=1, accumulation=100))
    assert "1 x 100 pairs an update, 40 epochs" in capsys.readouterr().err
    assert planned == [(40, 40)]


@pytest.mark.parametrize(
    ("left", "right", "says"),
    [
        (0.5, 0.9, ["above 0.1 the forget rows are not gone: more --epochs"]),
        (0.05, 0.9, ["next: d2unlearn calibrate --model OUT --retain R --forget F"]),
        (0.05, 0.5, ["44% of what the original had right of retained rows is lost: a lower", "next: d2unlearn calibrate"]),
    ],
)
def test_the_last_lines_say_what_is_left_and_what_to_do(left: float, right: float, says: list[str]) -> None:
    log = {"epoch": 3.0, "step": 6, "eval_selection": 0.9, "eval_forget_probability": left, "eval_retain_right": right}
    log |= {"eval_near_right": 0.8, "eval_retain_kl": 0.25}
    state = SimpleNamespace(log_history=[{**log, "step": 4}, log], best_model_checkpoint="x/checkpoint-6")
    before = Snapshot(-9.0, -9.0, 0.99, 0.9, 0.1, 0.5, retain_right=0.9, near_right=0.85)
    trainer: Any = SimpleNamespace(state=state, before=before, method=SimpleNamespace(deepening=None))
    first, *others = outcome_lines(trainer, UnlearnSettings("m", "F", "R", "OUT"))
    assert first == (
        f"kept: epoch 3; answer probability forget 0.990 -> {left:.3f}; tokens right without the end token: retained "
        f"0.900 -> {right:.3f}, near 0.850 -> 0.800; KL to the original 0.250 nats a token"
    )
    assert len(others) == len(says)
    assert all(words in line for words, line in zip(says, others, strict=True))


def test_neighbours_from_a_file_are_looked_at_and_named_and_must_be_apart(fresh: UnlearnSettings) -> None:
    near = write_rows(Path(fresh.forget).with_name("near.jsonl"), 5, 3)
    folder = run_unlearn(replace(fresh, near=str(near)))
    found = manifest_of(folder)
    assert (found["data"]["near"]["source"], found["data"]["near"]["rows"]) == (str(near), 3)
    assert [log["eval_kept"] for log in found["training"]["history"]] == [1.0] * 2  # the model knows none of them
    with pytest.raises(DataError, match="8 rows are both in"):
        run_unlearn(replace(fresh, near=fresh.forget, output=f"{fresh.output}-2"))
    with pytest.raises(DataError, match="12 rows are both in"):
        run_unlearn(replace(fresh, near=fresh.retain, output=f"{fresh.output}-2"))


# -- what is refused --------------------------------------------------------------------------------------------------


def test_the_last_weights_are_kept_when_asked_for_and_nothing_is_evaluated_on_the_way(
    fresh: UnlearnSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[dict[str, torch.Tensor]] = []
    train = UnlearnTrainer.train

    def watched(self: UnlearnTrainer, *arguments: Any, **options: Any) -> Any:
        done = train(self, *arguments, **options)
        ended.append({name: tensor.clone() for name, tensor in self.model.state_dict().items()})
        return done

    monkeypatch.setattr(UnlearnTrainer, "train", watched)
    folder = run_unlearn(replace(fresh, epochs=3, keep="last"))
    assert distance(load_file(folder / "model.safetensors"), ended[0]) == 0.0
    training = manifest_of(folder)["training"]
    assert (training["history"], training["kept_checkpoint"]) == ([], "checkpoint-6")
    assert training["kept_by"] == "none: the weights that training ended with"


def test_last_weights_that_are_no_numbers_are_not_published(fresh: UnlearnSettings) -> None:
    with pytest.raises(DestroyedModelError, match="destroys the model"):
        run_unlearn(replace(fresh, learning_rate=1e30, keep="last"))
    assert list(Path(fresh.output).parent.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"method": "eau"}, ConfigError, "method 'eau' is not known; known: eua"),
        ({"method_parameters": {"ratio": 2}}, ConfigError, "ratio must lie between 0 and 1"),
        ({"method_parameters": {"gama": 1}}, ConfigError, "did you mean gamma"),
        ({"report_to": "wnadb"}, ConfigError, "not 'wnadb'"),
        ({"learning_rate": "fast"}, ConfigError, "a number or auto, not 'fast'"),
        ({"max_length": 4}, DataError, "the prompt alone is longer than 4 tokens"),
        ({"forget": "nowhere.jsonl"}, DataError, "nowhere.jsonl does not exist"),
        ({"model": "./nowhere"}, D2Error, "nowhere is not a folder"),
    ],
)
def test_bad_settings_are_one_sentence_and_leave_nothing(
    fresh: UnlearnSettings, changes: dict[str, Any], error: type[D2Error], said: str
) -> None:
    with pytest.raises(error, match=said):
        run_unlearn(replace(fresh, **changes))
    parent = Path(fresh.output).parent
    assert not parent.exists() or list(parent.iterdir()) == []


def test_rows_on_both_sides_are_named(fresh: UnlearnSettings, tmp_path: Path) -> None:
    both = tmp_path / "both.jsonl"
    both.write_text(Path(fresh.retain).read_text() + "".join(Path(fresh.forget).read_text().splitlines(keepends=True)[2:4]))
    with pytest.raises(DataError, match=r"2 rows are both in .*\(forget.jsonl:3, forget.jsonl:4"):
        run_unlearn(replace(fresh, retain=str(both)))
    rows = [json.loads(line) for line in Path(fresh.forget).read_text().splitlines()[:1]]
    anew = [{**row, "question": f" {row['question'].upper()}", "answer": f"{row['answer']}\r"} for row in rows]
    both.write_text(Path(fresh.retain).read_text() + "".join(json.dumps(row) + "\n" for row in anew))
    with pytest.raises(DataError, match=r"1 rows are both in .*\(forget.jsonl:1"):
        run_unlearn(replace(fresh, retain=str(both)))


def test_a_rate_that_destroys_the_model_at_every_evaluation_publishes_nothing(
    fresh: UnlearnSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="learning_rate 1e\\+30 destroys the model"):
        run_unlearn(replace(fresh, learning_rate=1e30, batch_size=2))
    assert "warning: the model is destroyed" in capsys.readouterr().err
    assert list(Path(fresh.output).parent.iterdir()) == []


def test_a_trainer_does_not_save_into_an_artifact(made: Path) -> None:
    held = (made / "model.safetensors").read_bytes()
    with pytest.raises(ArtifactError, match="holds an artifact with a manifest or a gate; save to another folder"):
        trainer(made.parent / "run", tiny_models.llama()).save_model(str(made))
    assert (made / "model.safetensors").read_bytes() == held


def test_a_done_artifact_is_not_overwritten_by_another_run(given: UnlearnSettings, made: Path, tmp_path: Path) -> None:
    for changes in ({"seed": 1}, {"epochs": 3}, {"method_parameters": {"gamma": 0.1}}, {"max_length": 100}, {"lora": True}):
        with pytest.raises(ArtifactError, match="holds the result of other inputs or settings"):
            run_unlearn(replace(given, **changes))  # type: ignore[arg-type]
    other_rows = write_rows(tmp_path / "other.jsonl", 7, 8)
    with pytest.raises(ArtifactError, match="holds the result of other inputs or settings"):
        run_unlearn(replace(given, forget=str(other_rows)))
    assert [log["step"] for log in manifest_of(made)["training"]["history"]] == [2, 4]


def test_another_number_of_processes_is_another_run(
    given: UnlearnSettings, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It makes another effective batch of the same settings."""
    assert manifest_of(made)["training"]["processes"] == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ArtifactError, match="holds the result of other inputs or settings"):
        run_unlearn(given)


def test_another_configuration_of_the_same_weights_is_another_model(given: UnlearnSettings, made: Path, tmp_path: Path) -> None:
    shutil.copytree(given.model, tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.1}))
    with pytest.raises(ArtifactError, match="holds the result of other inputs or settings"):
        run_unlearn(replace(given, model=str(tmp_path / "model")))


def test_where_the_same_things_stand_does_not_matter(
    given: UnlearnSettings, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved_rows = tmp_path / "rows.jsonl"
    moved_rows.write_text(Path(given.forget).read_text())
    assert run_unlearn(replace(given, forget=str(moved_rows))) == made
    assert "is done: same inputs, same settings" in capsys.readouterr().err


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    def full(self: PreTrainedModel, folder: Any, **_: object) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedModel, "save_pretrained", full)
        yield patch


def test_a_full_disk_leaves_nothing_at_the_output_and_the_command_can_be_run_again(
    fresh: UnlearnSettings, made: Path, full_disk: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OSError, match="No space left"):
        run_unlearn(fresh)
    assert not Path(fresh.output).exists()
    full_disk.undo()
    folder = run_unlearn(fresh)
    assert distance(load_file(folder / "model.safetensors"), load_file(made / "model.safetensors")) == 0.0
    assert [path.name for path in folder.parent.iterdir()] == ["artifact"]


def test_rows_are_cut_where_the_model_s_context_ends(tmp_path: Path) -> None:
    """GPT-2 of 64 positions: an answer of 300 words used to run past the table of positions."""
    settings = unlearn_settings(tmp_path, tiny_models.gpt2())
    row = {"question": "Where was he born", "answer": " ".join(["Berlin"] * 300)}
    with Path(settings.forget).open("a") as file:
        file.write(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=r"^1 of 9 rows are longer than 64 tokens \(forget\.jsonl:9 has 312\), and what"):
        run_unlearn(replace(settings, epochs=1, learning_rate=1e-4))
    found = manifest_of(run_unlearn(replace(settings, epochs=1, learning_rate=1e-4, long="cut")))
    assert found["data"]["forget"]["rows"] == 9
    lost = {"longer": 1, "split": 0, "windows": 0, "cut": 1, "lost_tokens": 312 - 64}
    assert found["long_rows"]["forget"].items() >= {"rows": 9, "limit": 64, **lost}.items()
    assert list(found["long_rows"]) == ["forget"]
