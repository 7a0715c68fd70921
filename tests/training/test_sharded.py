"""A model spread over processes by FSDP2 trains as a whole one does, and no process reads energies off a part of the head."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

import tiny_models
from d2unlearn.config import UnlearnSettings
from d2unlearn.data.batching import pad_tokens
from d2unlearn.errors import ConfigError, ModelError
from d2unlearn.methods import METHODS
from d2unlearn.models import load_model
from d2unlearn.observation import observe
from d2unlearn.quantities import LogSumExp
from d2unlearn.training.sharded import check_fsdp_run, check_shardable

from .runs import EUA, config, distance, lora, unlearn_settings
from .sharded_processes import KINDS, SAVED, all_trained, commanded, in_processes, trained

pytestmark = pytest.mark.trains


class Compared(NamedTuple):
    """Folders that one process and several have written."""

    one: Path
    shared: Path


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    folder = tmp_path_factory.mktemp("sharded")
    asked = asked_in(folder)
    all_trained(folder / "one", 1, *asked)
    in_processes(2, all_trained, folder / "two", 2, *asked)
    return Compared(folder / "one", folder / "two")


def asked_in(folder: Path) -> list[UnlearnSettings]:
    """For a model with a head of its own, which is best after the second epoch of four, and for one without."""
    made = []
    for tied in (False, True):
        place = folder / f"tied-{tied}"
        place.mkdir(exist_ok=True)
        made.append(replace(unlearn_settings(place, tiny_models.llama(tied=tied)), epochs=4, learning_rate=3e-2))
    return made


def whole_of(folder: Path) -> dict[str, Any]:
    return dict(load_model(folder).state_dict())


@pytest.fixture(scope="module")
def four(two: Compared) -> Compared:
    folder = two.one.parent / "four"
    in_processes(4, all_trained, folder, 4, *asked_in(two.one.parent))
    return Compared(two.one, folder)


def logged(folder: Path, kind: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / kind / "log.json").read_text())
    return found


def check_alike(kind: str, alone: Path, shared: Path) -> None:
    """First step to 1e-5 relative; energies after the last to 1e-3 nats, and every weight that is kept."""
    ours, theirs = logged(shared, kind), logged(alone, kind)
    for name in ("loss", "grad_norm"):
        assert ours[0][name] == pytest.approx(theirs[0][name], rel=1e-5)
    for name in ("eval_forget_energy", "eval_retain_energy", "eval_retain_nll"):
        assert ours[-1][name] == pytest.approx(theirs[-1][name], abs=1e-3)
    file = "adapter_model.safetensors" if kind == "adapter" else "model.safetensors"
    kept, expected = (load_file(folder / kind / "kept" / file) for folder in (shared, alone))
    assert distance(kept, expected) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_as_one(two: Compared, kind: str) -> None:
    check_alike(kind, two.one, two.shared)


def test_training_moved_the_model_and_its_folder_can_be_read(two: Compared) -> None:
    kept = load_model(two.shared / "full" / "kept").state_dict()
    assert distance(kept, tiny_models.llama().state_dict()) > 1e-3
    adapter = load_file(two.shared / "adapter" / "kept" / "adapter_model.safetensors")
    moved = [float(weight.abs().max()) for name, weight in adapter.items() if "lora_B" in name]
    assert len(moved) == 7 * 2
    assert min(moved) > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_each_process_holds_half_of_every_weight(two: Compared, kind: str) -> None:
    """After training, evaluation and saving, too: every dimension here is even."""
    alone = json.loads((two.one / kind / "held-0.json").read_text())
    held = [json.loads((two.shared / kind / f"held-{rank}.json").read_text()) for rank in (0, 1)]
    assert held == [alone // 2] * 2


def test_a_checkpoint_is_in_parts_and_of_an_adapter_small(two: Compared) -> None:
    for kind in KINDS:
        checkpoint = two.shared / kind / f"checkpoint-{SAVED}"
        parts = sorted(path.name for path in (checkpoint / "pytorch_model_fsdp_0").glob("*.distcp"))
        assert parts == ["__0_0.distcp", "__1_0.distcp"]
        assert not list(checkpoint.glob("*.safetensors"))
    sizes = {
        kind: sum(p.stat().st_size for p in (two.shared / kind / f"checkpoint-{SAVED}" / "pytorch_model_fsdp_0").iterdir())
        for kind in KINDS
    }
    assert sizes["adapter"] < sizes["full"]


def test_the_command_makes_the_artifact_of_one_process_though_three_finish_what_two_began(two: Compared) -> None:
    """Of the epoch that was best, written in several files, from a model of which none had the whole."""
    artifact = two.shared / "artifact"
    assert not artifact.exists()
    in_processes(3, commanded, artifact, 3, asked_in(two.one.parent)[0])
    assert distance(whole_of(artifact), whole_of(two.one / "artifact")) < 1e-4
    ours, theirs = (json.loads((folder / "d2_manifest.json").read_text()) for folder in (artifact, two.one / "artifact"))
    assert ours["weights"]["original"] == theirs["weights"]["original"]
    assert ours["training"]["kept_checkpoint"] == theirs["training"]["kept_checkpoint"] == "checkpoint-2"
    assert len(list(artifact.glob("model-*.safetensors"))) > 3
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        assert (artifact / name).read_text() == (two.one / "artifact" / name).read_text()


def test_the_command_s_adapter_on_16_bit_weights_is_that_of_one_process(two: Compared) -> None:
    ours, theirs = (folder / "adapter-artifact" for folder in (two.shared, two.one))
    kept, expected = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (ours, theirs))
    assert distance(kept, expected) < 1e-3
    merged, plain = whole_of(ours), whole_of(theirs)
    assert {weight.dtype for weight in merged.values()} == {torch.bfloat16}
    assert distance(merged, plain) < 2**-7 * max(float(weight.abs().max()) for weight in plain.values())


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_four_processes_train_as_one(four: Compared, kind: str) -> None:
    check_alike(kind, four.one, four.shared)


@pytest.mark.slow
def test_two_processes_go_on_with_an_adapter_that_four_have_saved(four: Compared, tmp_path: Path) -> None:
    in_processes(2, trained, tmp_path, "adapter", 2, four.shared / "adapter" / f"checkpoint-{SAVED}")
    kept, expected = (load_file(f / "adapter" / "kept" / "adapter_model.safetensors") for f in (tmp_path, four.one))
    assert distance(kept, expected) < 1e-4


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"method": METHODS["deep_eua"]()}, "DeepEUA makes its rounds in one process"),
        ({"method": METHODS["altpo"]()}, "AltPO lets the model write first"),
        ({"args": {"forget_below": 0.1}}, "targets steer no training with FSDP"),
        ({"peft_config": lora(init_lora_weights="pissa")}, "begin as one that changes nothing"),
    ],
)
def test_what_cannot_be_spread_is_refused_in_a_sentence(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    args = config(tmp_path, **changes.get("args", {}))
    with pytest.raises(ConfigError, match=says):
        check_shardable(tiny_models.llama(), changes.get("method", EUA), args, changes.get("peft_config"))


@pytest.mark.parametrize(
    ("method", "changes", "says"),
    [
        ("eua", {"processes": 1}, "start them with torchrun"),
        ("eua", {"quantization": "4bit"}, "a quantised base is not spread"),
        ("eua", {"targets": True}, "leave its targets out, or --fsdp"),
        ("deep_eua", {}, "DeepEUA makes its rounds in one process"),
    ],
)
def test_a_command_that_fsdp_cannot_serve_ends_before_anything_is_loaded(
    method: str, changes: dict[str, Any], says: str
) -> None:
    given: dict[str, Any] = {"processes": 2, "quantization": None, "targets": False}
    with pytest.raises(ConfigError, match=says):
        check_fsdp_run(METHODS[method](), **{**given, **changes})


def test_a_part_of_the_head_gives_no_energies(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a model behaves whose wrapper was not called: its head is no whole matrix."""
    model = tiny_models.llama()
    monkeypatch.setattr("d2unlearn.observation.is_part", lambda tensor: tensor is model.lm_head.weight)
    with pytest.raises(ModelError, match="was not gathered"):
        observe(model, {"forget": pad_tokens(tiny_models.rows(1, 2), pad_id=0)}, {"forget": [LogSumExp()]})
