"""A gate belongs to the files that are loaded and to what decides beside them: what lies elsewhere or changed is refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from d2unlearn.errors import D2Error, GateError, ModelError
from d2unlearn.gate import EnergyGate
from d2unlearn.gate.gated import GateWarning
from d2unlearn.loaded_files import INDEX, WEIGHTS, bound_hashes, weight_files
from d2unlearn.models import load_model, weights_hash
from d2unlearn.runtime import fingerprint
from d2unlearn.schema import GATE_FILE

from . import tiny


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, gate: EnergyGate
) -> Path:
    folder = tmp_path_factory.mktemp("bound") / "artifact"
    model.save_pretrained(folder)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    gate.save(folder)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "artifact"))


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be loaded."""

    def load(*_: Any, **__: Any) -> None:
        pytest.fail("something was loaded")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", load)
    monkeypatch.setattr("torch.load", load)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def sharded(folder: Path, weight_map: Callable[[str], str]) -> None:
    """The weights as an index names them; the file of that name is not made here."""
    names = load_file(folder / WEIGHTS)
    index = {"metadata": {"total_size": 0}, "weight_map": {name: weight_map(name) for name in names}}
    (folder / INDEX).write_text(json.dumps(index))


# -- which files are loaded -----------------------------------------------------------------------------------------------


def test_what_the_loader_does_not_open_is_no_weight(folder: Path) -> None:
    """As Mistral's `consolidated.safetensors` beside the shards."""
    hashed = weights_hash(folder)
    save_file(tiny.model(seed=3).state_dict(), folder / "consolidated.safetensors")
    sharded(folder, lambda _: "consolidated.safetensors")
    assert weight_files(folder) == (folder / WEIGHTS,)
    assert weights_hash(folder) == hashed
    EnergyGate.from_pretrained(folder)
    (folder / WEIGHTS).unlink()
    assert weight_files(folder) == (folder / "consolidated.safetensors",)
    with pytest.raises(GateError, match="other weights"):
        EnergyGate.from_pretrained(folder)


def test_a_name_in_the_configuration_comes_first(folder: Path) -> None:
    """transformers opens `transformers_weights` before anything else."""
    save_file(tiny.model(seed=3).state_dict(), folder / "other.safetensors", {"format": "pt"})
    edit(folder / "config.json", transformers_weights="other.safetensors")
    assert weight_files(folder) == (folder / "other.safetensors",)
    assert bool((load_model(folder).lm_head.weight == tiny.model(seed=3).lm_head.weight).all())
    with pytest.raises(GateError, match="other weights"):
        EnergyGate.from_pretrained(folder)
    for away in ("../other.safetensors", "../model.safetensors.index.json"):
        edit(folder / "config.json", transformers_weights=away)
        with pytest.raises(ModelError, match="does not lie in the folder"):
            weight_files(folder)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("../original.safetensors", "does not lie in the folder"),
        ("sub/model.safetensors", "does not lie in the folder"),
        ("/weights/model.safetensors", "does not lie in the folder"),
        ("pytorch_model.bin", "is no safetensors file"),
        ("..", "does not lie in the folder"),
    ],
)
def test_an_index_that_names_another_place_or_a_pickle_is_refused_before_anything_is_loaded(
    folder: Path, unloaded: None, name: str, why: str
) -> None:
    sharded(folder, lambda tensor: name if tensor == "lm_head.weight" else WEIGHTS)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    os.replace(folder / WEIGHTS, folder / "moved.safetensors")
    for load in (EnergyGate.from_pretrained, load_model, weights_hash):
        with pytest.raises(ModelError, match=f"its weights are said to be in .*{why}"):
            load(folder)
    (folder / GATE_FILE).unlink()
    with pytest.raises(ModelError, match=why):
        load_model(folder)


def test_a_pickle_by_the_name_of_a_safetensors_file_is_refused(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(pickle.dumps(list(range(1000))))
    with pytest.raises(ModelError, match="no safetensors file, or cut short"):
        EnergyGate.from_pretrained(folder)


@pytest.mark.parametrize("index", ["{", '{"weight_map": 3}', "{}"])
def test_an_index_that_cannot_be_read_is_one_sentence(folder: Path, index: str) -> None:
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(index)
    with pytest.raises(ModelError, match="does not say where the weights are"):
        load_model(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_link_out_of_the_folder_is_refused_where_there_is_a_gate_and_followed_where_there_is_none(
    folder: Path, tmp_path: Path, name: str
) -> None:
    os.replace(folder / name, tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    for load in (EnergyGate.from_pretrained, load_model):
        with pytest.raises(ModelError, match=rf"{name} is a link to .*put the file itself there"):
            load(folder)
    (folder / GATE_FILE).unlink()
    load_model(folder)


def test_links_within_the_hub_s_cache_are_followed(folder: Path, tmp_path: Path, gate: EnergyGate) -> None:
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in [path for path in folder.iterdir() if path.is_file()]:
        os.replace(path, blobs / f"blob-of-{path.name}")
        (snapshot / path.name).symlink_to(Path("../../blobs") / f"blob-of-{path.name}")
    assert EnergyGate.from_pretrained(snapshot).threshold == gate.threshold
    (snapshot / "tokenizer.json").unlink()
    (snapshot / "tokenizer.json").symlink_to(tmp_path / "models--c--d" / "tokenizer.json")
    with pytest.raises(ModelError, match="is a link to"):
        EnergyGate.from_pretrained(snapshot)


def test_an_adapter_on_top_of_the_weights_is_refused(folder: Path) -> None:
    """transformers would put it on them."""
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="merge it and calibrate then"):
        EnergyGate.from_pretrained(folder)


# -- what decides beside the weights --------------------------------------------------------------------------------------


def fewer_layers(folder: Path) -> None:
    edit(folder / "config.json", num_hidden_layers=1)


def another_theta(folder: Path) -> None:
    edit(folder / "config.json", rope_parameters={"rope_theta": 500000.0, "rope_type": "default"})


def another_end(folder: Path) -> None:
    edit(folder / "generation_config.json", eos_token_id=5)


def a_token(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"w7"', '"w70"', 1))


def a_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages }}")


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "one layer fewer": (fewer_layers, "the configuration"),
    "rms_norm_eps": (lambda folder: edit(folder / "config.json", rms_norm_eps=1e-3), "the configuration"),
    "rope_theta": (another_theta, "the configuration"),
    "the end token": (another_end, "what generation is told"),
    "a token": (a_token, "the tokenizer's files"),
    "the template": (a_template, "the chat template's files"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_decides_beside_the_weights_may_not_change_unseen(folder: Path, change: str) -> None:
    make, said = CHANGES[change]
    make(folder)
    with pytest.raises(GateError, match=rf"^{said}.*changed since the gate was calibrated.*d2unlearn calibrate --model"):
        EnergyGate.from_pretrained(folder)


def test_what_is_only_noted_or_says_how_much_comes_back_may(folder: Path, gate: EnergyGate) -> None:
    edit(folder / "config.json", transformers_version="99", _name_or_path="elsewhere")
    edit(folder / "generation_config.json", return_dict_in_generate=True, num_return_sequences=2, do_sample=True)
    (folder / "README.md").write_text("mine")
    assert EnergyGate.from_pretrained(folder).threshold == gate.threshold


def test_a_gate_is_not_saved_beside_another_configuration(folder: Path) -> None:
    bound = EnergyGate.from_pretrained(folder)
    fewer_layers(folder)
    with pytest.raises(GateError, match="another configuration than the one that was calibrated"):
        bound.save(folder)


def older(folder: Path) -> None:
    """The gate as an earlier version wrote it."""
    path = folder / GATE_FILE
    content = {name: value for name, value in json.loads(path.read_text()).items() if name not in ("bound", "checksum")}
    path.write_text(json.dumps({**content, "checksum": fingerprint(content)}))


def test_a_gate_of_an_earlier_version_loads_and_a_warning_says_what_it_does_not_bind(folder: Path) -> None:
    older(folder)
    another_theta(folder)
    with pytest.warns(GateWarning, match=r"does not bind the configuration \(config\.json\), .*calibrate .* binds them"):
        loaded = EnergyGate.from_pretrained(folder)
    assert loaded.bound == {}
    assert loaded.fingerprint == fingerprint(json.loads((folder / GATE_FILE).read_text()))
    loaded.save(folder)  # which knows no more than before
    with pytest.warns(GateWarning, match="does not bind"):
        assert EnergyGate.from_pretrained(folder).bound == {}
    replace(loaded, weights_hash=None).save(folder)
    assert EnergyGate.from_pretrained(folder).bound == bound_hashes(folder)


@pytest.mark.parametrize("bound", [3, ["config"], {"config": None}])
def test_a_garbled_binding_is_one_sentence(folder: Path, bound: object) -> None:
    path = folder / GATE_FILE
    content = {**json.loads(path.read_text()), "bound": bound}
    del content["checksum"]
    path.write_text(json.dumps({**content, "checksum": fingerprint(content)}))
    with pytest.raises(D2Error, match=r"missing or garbled|changed since"):
        EnergyGate.from_pretrained(folder)
