"""A model spread over processes by FSDP2 trains as a whole one does, and no process reads energies off a part of the head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors.torch import load_file

import tiny_models
from d2unlearn.data.batching import pad_tokens
from d2unlearn.errors import ConfigError, ModelError
from d2unlearn.methods import METHODS
from d2unlearn.models import load_model
from d2unlearn.observation import observe
from d2unlearn.quantities import LogSumExp
from d2unlearn.training.sharded import check_shardable

from .runs import EUA, config, distance, lora
from .sharded_processes import KINDS, SAVED, STEPS, all_trained, in_processes, trained

pytestmark = pytest.mark.trains


class Compared(NamedTuple):
    """Folders that one process and several have written."""

    one: Path
    shared: Path


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    folder = tmp_path_factory.mktemp("sharded")
    all_trained(folder / "one", 1)
    in_processes(2, all_trained, folder / "two", 2)
    return Compared(folder / "one", folder / "two")


@pytest.fixture(scope="module")
def four(two: Compared) -> Compared:
    folder = two.one.parent / "four"
    in_processes(4, all_trained, folder, 4)
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


def test_the_best_checkpoint_may_be_the_last_and_is_what_remains(two: Compared) -> None:
    looks = [log for log in logged(two.shared / "best", "full") if "eval_selection" in log]
    best = max(looks[:-1], key=lambda log: log["eval_selection"])
    assert [look["step"] for look in looks] == [SAVED, STEPS, STEPS]
    assert looks[-1]["eval_retain_nll"] == pytest.approx(best["eval_retain_nll"], rel=1e-6)


def test_three_processes_go_on_from_what_two_have_saved(two: Compared, tmp_path: Path) -> None:
    in_processes(3, trained, tmp_path, "full", 3, two.shared / "full" / f"checkpoint-{SAVED}")
    ours, theirs = (logged(folder, "full")[-1]["eval_forget_energy"] for folder in (tmp_path, two.one))
    assert ours == pytest.approx(theirs, abs=1e-3)
    kept, expected = (load_file(folder / "full" / "kept" / "model.safetensors") for folder in (tmp_path, two.one))
    assert distance(kept, expected) < 1e-4


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


def test_a_part_of_the_head_gives_no_energies(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a model behaves whose wrapper was not called: its head is no whole matrix."""
    model = tiny_models.llama()
    monkeypatch.setattr("d2unlearn.observation.is_part", lambda tensor: tensor is model.lm_head.weight)
    with pytest.raises(ModelError, match="was not gathered"):
        observe(model, {"forget": pad_tokens(tiny_models.rows(1, 2), pad_id=0)}, {"forget": [LogSumExp()]})
