"""Which models are taken, which are turned down and why, and which weights a folder holds."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    LlamaModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

import tiny_models
from d2unlearn.data.template import Template
from d2unlearn.errors import ModelError
from d2unlearn.generation.guarded import GuardedModel
from d2unlearn.models import end_token_ids, load_model, load_tokenizer, pad_token_id, state_hash, weights_hash, weights_name

SMALL = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_models.llama().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def bert() -> PreTrainedModel:
    """Wide weights: what an encoder predicts must depend visibly on what comes later."""
    return BertForMaskedLM(BertConfig(**SMALL, initializer_range=0.5))


def distilbert() -> PreTrainedModel:
    return DistilBertForMaskedLM(DistilBertConfig(vocab_size=40, dim=16, hidden_dim=16, n_layers=1, n_heads=2))


def t5() -> PreTrainedModel:
    config = T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    return T5ForConditionalGeneration(config)


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_every_causal_family_comes_back_as_it_was_saved(family: str, tmp_path: Path) -> None:
    made = tiny_models.FAMILIES[family]()
    made.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert type(loaded) is type(made)
    assert not loaded.training
    assert state_hash(loaded) == state_hash(made)


def test_the_dtype_is_that_of_the_weights_unless_another_is_asked_for(tmp_path: Path) -> None:
    tiny_models.llama().to(torch.bfloat16).save_pretrained(tmp_path)
    assert load_model(tmp_path).dtype == torch.bfloat16
    assert load_model(tmp_path, dtype=torch.float32).dtype == torch.float32


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (bert, "is no causal model: what it predicts depends on the tokens that come later"),
        (distilbert, "is a distilbert model, which has no causal language-model head"),
        (t5, "is a t5 model, which has no causal language-model head"),
    ],
)
def test_encoders_and_encoder_decoders_are_refused(make: Callable[[], PreTrainedModel], says: str, tmp_path: Path) -> None:
    make().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=f"^{tmp_path} {says}$"):
        load_model(tmp_path)


def test_a_model_without_its_head_is_refused(tmp_path: Path) -> None:
    LlamaModel(tiny_models.llama().config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"has no causal language-model head, or its files are incomplete.*lm_head\.weight"):
        load_model(tmp_path)


def test_a_missing_layer_is_refused_as_incomplete(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"its weights lack model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(folder)


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, 0.99])
def test_truncated_weights_are_refused_in_one_line(folder: Path, kept: float) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(ModelError, match=f"^{folder} could not be loaded as a causal language model: ") as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="cut short"):
        weights_hash(folder)


def test_what_is_no_model_folder_is_refused(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for name, says in (
        ("missing", "is not a folder; give a Hugging Face model folder, a GGUF file or a hub name"),
        ("file", "is not a folder"),
        ("empty", "has no config.json"),
    ):
        for load in (load_model, load_tokenizer):
            with pytest.raises(ModelError, match=f"^{tmp_path / name} {says}"):
                load(tmp_path / name)
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=f"^{folder} could not be loaded as a causal language model: "):
        load_model(folder)


def test_weights_that_are_no_safetensors_are_not_read(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=f"^{folder} could not be loaded as a causal language model: "):
        load_model(folder)
    with pytest.raises(ModelError, match=f"^{folder} holds no safetensors weights$"):
        weights_hash(folder)


def test_a_name_that_the_hub_does_not_give_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"^nobody/nothing is no folder here, and the hub gave no model of that name: "):
        load_model("nobody/nothing")


def test_a_folder_without_a_tokenizer_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match=f"^{folder} could not be loaded as a tokenizer: "):
        load_tokenizer(folder)


def sharded(model: PreTrainedModel, folder: Path, size: str) -> Path:
    model.save_pretrained(folder, max_shard_size=size)
    return folder


def test_the_weights_hash_does_not_depend_on_sharding(tmp_path: Path) -> None:
    model = tiny_models.llama()
    whole, parts = sharded(model, tmp_path / "whole", "1GB"), sharded(model, tmp_path / "parts", "20KB")
    assert len(list(whole.glob("*.safetensors"))) == 1
    assert len(list(parts.glob("*.safetensors"))) >= 3
    assert weights_hash(whole) == weights_hash(parts)
    assert state_hash(load_model(parts)) == state_hash(model)


def test_the_weights_hash_is_of_names_dtypes_shapes_and_bytes(tmp_path: Path) -> None:
    base = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(2)}
    changed = {
        "same": base,
        "metadata": base,
        "name": {"a": base["a"], "c": base["b"]},
        "names swapped": {"b": base["a"], "a": base["b"]},
        "shape": {"a": base["a"].reshape(3, 2), "b": base["b"]},
        "dtype": {"a": base["a"], "b": base["b"].view(torch.int32)},
        "bytes": {"a": base["a"] + torch.eye(2, 3) * 1e-6, "b": base["b"]},
        "one more": {**base, "c": torch.zeros(0)},
    }
    found = {}
    for name, tensors in changed.items():
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors", metadata={"note": name} if name == "metadata" else None)
        found[name] = weights_hash(tmp_path / name)
    assert found["same"] == found["metadata"]
    assert len(set(found.values())) == len(found) - 1


def test_the_weights_hash_reads_block_by_block(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = weights_hash(folder)
    monkeypatch.setattr("d2unlearn.models.BLOCK", 7)
    assert weights_hash(folder) == expected


def test_weights_go_by_their_hash_in_a_folder_and_by_their_name_on_the_hub(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    (tmp_path / "empty").mkdir()
    assert weights_name(folder) == weights_name(str(moved)) == weights_hash(folder)
    assert weights_name("owner/name") == "owner/name"
    with pytest.raises(ModelError, match="safetensors"):
        weights_name(tmp_path / "empty")


def test_the_state_hash_is_of_every_parameter_and_its_dtype() -> None:
    model = tiny_models.llama()
    first = state_hash(model)
    assert first == state_hash(tiny_models.llama())
    assert state_hash(tiny_models.llama(seed=1)) != first
    assert state_hash(tiny_models.llama().bfloat16()) != first
    with torch.no_grad():
        model.model.norm.weight[3] += 1e-6
    assert state_hash(model) != first


def test_the_pad_id_is_the_tokenizer_s_or_its_end_token_or_zero(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    made = tiny_models.tokenizer()
    assert pad_token_id(made) == made.convert_tokens_to_ids("<pad>")
    made.pad_token = None
    assert pad_token_id(made) == made.convert_tokens_to_ids("<eos>")
    made.eos_token = None
    assert pad_token_id(made) == 0


def test_end_tokens_are_the_generation_configuration_s_before_the_tokenizer_s() -> None:
    model, made = tiny_models.llama(), tiny_models.tokenizer()
    for configured, expected in ((5, [5]), ([5, 6], [5, 6]), (None, [2])):
        model.generation_config.eos_token_id = configured
        assert end_token_ids(model, made) == expected
    made.eos_token = None
    assert end_token_ids(model, made) == []


def test_a_tokenizer_without_a_pad_token_works(tmp_path: Path) -> None:
    """Padding, masks and answers are those of the same tokenizer with one, whatever the batch."""
    prompts = ["What is it?", "he was born in a city of France?", "it"]
    answers = []
    for pad_token in ("<pad>", None):
        made = tiny_models.tokenizer()
        made.pad_token = pad_token
        model = tiny_models.llama(vocabulary=len(made))
        model.config.pad_token_id = model.generation_config.pad_token_id = made.pad_token_id
        folder = tmp_path / str(pad_token)
        model.save_pretrained(folder)
        made.save_pretrained(folder)
        assert load_tokenizer(folder).pad_token == pad_token
        loaded = GuardedModel.from_pretrained(folder, raw=True)
        answers.append([answer.text for answer in loaded.answer(prompts, max_new_tokens=6, batch_size=3)])
        assert answers[-1] == [loaded.answer([prompt], max_new_tokens=6)[0].text for prompt in prompts]
    assert answers[0] == answers[1]


def test_a_tokenizer_comes_back_with_its_chat_template(tmp_path: Path) -> None:
    made = tiny_models.tokenizer()
    tiny_models.llama(vocabulary=len(made)).save_pretrained(tmp_path)
    made.save_pretrained(tmp_path)
    assert Template(load_tokenizer(tmp_path)).fingerprint == Template(made).fingerprint
