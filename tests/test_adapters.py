"""The folder of a PEFT adapter as a model: its base with the adapter in its weights, or what is missing in one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

import tiny_models
from d2unlearn.adapters import Adapter, adapter_of
from d2unlearn.data.template import Template
from d2unlearn.errors import ModelError
from d2unlearn.generation.guarded import GuardedModel
from d2unlearn.models import context_of, load_model, load_tokenizer, weights_hash, weights_name, with_fresh_adapter

IDS = torch.tensor([[1, 5, 7, 9, 11]])
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def lora() -> LoraConfig:
    return LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model/, and adapter/ with a random LoRA of it."""
    folder = tmp_path_factory.mktemp("adapters")
    tokenizer = tiny_models.tokenizer()
    base = tiny_models.llama(vocabulary=len(tokenizer))
    base.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    torch.manual_seed(3)
    with_fresh_adapter(load_model(folder / "model"), lora()).save_pretrained(folder / "adapter")  # type: ignore[operator]
    return folder


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def renamed(folder: Path, base: str) -> Path:
    """The adapter, with another name for its base."""
    config = json.loads((folder / "adapter" / CONFIG).read_text())
    (folder / "adapter" / CONFIG).write_text(json.dumps({**config, "base_model_name_or_path": base}))
    return folder / "adapter"


def test_it_answers_as_its_base_with_the_adapter(folder: Path) -> None:
    base = load_model(folder / "model")
    plain = base(input_ids=IDS).logits
    loaded, parts = load_model(folder / "adapter"), load_file(folder / "adapter" / WEIGHTS)
    with torch.no_grad():
        for name in [name.split(".lora_A")[0] for name in parts if ".lora_A." in name]:
            low, high = parts[f"{name}.lora_A.weight"], parts[f"{name}.lora_B.weight"]
            base.get_submodule(name.removeprefix("base_model.model.")).weight += 4 / 2 * high @ low
    assert type(loaded).__name__ == "LlamaForCausalLM"
    torch.testing.assert_close(loaded(input_ids=IDS).logits, base(input_ids=IDS).logits, atol=1e-4, rtol=1e-4)
    assert (loaded(input_ids=IDS).logits - plain).abs().max() > 0.1


@pytest.mark.filterwarnings("ignore:Could not find a config file")
def test_an_adapter_of_an_adapter_names_it_as_its_base(folder: Path, tmp_path: Path) -> None:
    once = load_model(folder / "adapter")
    before = once(input_ids=IDS).logits.detach()
    with_fresh_adapter(once, lora()).save_pretrained(tmp_path / "second")  # type: ignore[operator]
    assert adapter_of(tmp_path / "second") == Adapter(tmp_path / "second", str(folder / "adapter"))
    zeros = {name: values * 0 for name, values in load_file(tmp_path / "second" / WEIGHTS).items()}
    save_file(zeros, tmp_path / "second" / WEIGHTS)
    torch.testing.assert_close(load_model(tmp_path / "second")(input_ids=IDS).logits, before)


def test_every_other_question_is_answered_of_it_too(folder: Path) -> None:
    adapter = folder / "adapter"
    assert Template(load_tokenizer(adapter)).fingerprint == Template(load_tokenizer(folder / "model")).fingerprint
    assert context_of(adapter) == context_of(folder / "model") == load_model(adapter).config.max_position_embeddings
    merged = GuardedModel(load_model(adapter), load_tokenizer(adapter), None)
    expected = merged.answer(["What?"], max_new_tokens=4, raw=True)
    assert GuardedModel.from_pretrained(adapter, raw=True).answer(["What?"], max_new_tokens=4) == expected


def test_its_hash_is_of_adapter_and_base_wherever_they_lie(folder: Path, copy: Path) -> None:
    moved = renamed(copy, str(copy / "model"))
    assert weights_name(folder / "adapter") == weights_hash(folder / "adapter") == weights_hash(moved)
    assert weights_hash(moved) != weights_hash(copy / "model")
    first = weights_hash(moved)
    config = json.loads((moved / CONFIG).read_text())
    (moved / CONFIG).write_text(json.dumps({**config, "lora_alpha": 8}))
    assert weights_hash(moved) != first
    renamed(copy, str(folder / "model"))
    (moved / CONFIG).write_text(json.dumps(config))
    weights = load_file(copy / "model" / "model.safetensors")
    save_file({name: values + 1 for name, values in weights.items()}, copy / "model" / "model.safetensors")
    assert weights_hash(moved) != first


def test_a_base_is_looked_for_from_here_and_from_the_adapter(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy)
    for base in (str(copy / "model"), "./model", "../model"):
        assert (copy / "model").samefile(adapter_of(renamed(copy, base)).base)  # type: ignore[union-attr]
    assert adapter_of(renamed(copy, "owner/name")) == Adapter(copy / "adapter", "owner/name")
    assert adapter_of(copy / "model") is adapter_of("owner/name") is None


def test_a_model_and_an_adapter_in_one_folder_are_refused(copy: Path) -> None:
    """transformers would load the adapter's base in the place of the model that lies there."""
    shutil.copy(copy / "adapter" / CONFIG, copy / "model")
    for load in (load_model, load_tokenizer, weights_hash):
        with pytest.raises(ModelError, match=r"holds a model and adapter_config\.json, and nothing says which is meant"):
            load(copy / "model")


@pytest.mark.parametrize("with_config", [False, True])
def test_what_is_missing_is_one_sentence_that_names_the_base(copy: Path, with_config: bool) -> None:
    adapter = renamed(copy, "./no")
    if with_config:
        shutil.copy(copy / "model" / "config.json", adapter)
    for load in (load_model, load_tokenizer):
        with pytest.raises(ModelError, match=r"\./no is not a folder"):
            load(adapter)
    (adapter / WEIGHTS).write_bytes(b"")
    with pytest.raises(ModelError, match=rf"^{adapter} holds a PEFT adapter of \./no, but {WEIGHTS} is missing or empty"):
        load_model(adapter)
    (adapter / CONFIG).write_text("{}")
    with pytest.raises(ModelError, match="names no base_model_name_or_path"):
        load_model(adapter)


def test_what_does_not_fit_is_one_sentence_that_names_the_base(copy: Path) -> None:
    adapter, base = copy / "adapter", copy / "model"
    renamed(copy, str(base))
    said = rf"^the PEFT adapter in {adapter} does not fit its base {base}: "
    weights = load_file(adapter / WEIGHTS)
    for changed in (
        {name: values.repeat(1, 2) for name, values in weights.items()},
        {name: values for name, values in weights.items() if "layers.0" not in name},
        {name.replace("model.layers", "transformer.h"): values for name, values in weights.items()},
    ):
        save_file(changed, adapter / WEIGHTS)
        with pytest.raises(ModelError, match=said):
            load_model(adapter)
    (adapter / WEIGHTS).write_bytes(b"12345")
    with pytest.raises(ModelError, match=said):
        load_model(adapter)
