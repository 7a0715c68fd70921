"""A GGUF file as a model: a tiny one, written as llama.cpp does, comes back with its weights, tokenizer and chat template."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import LlamaForCausalLM

import tiny_models
from cli.command import d2, refused
from d2unlearn.data.template import Template
from d2unlearn.errors import ModelError
from d2unlearn.gguf import folder_of_gguf, is_gguf
from d2unlearn.models import load_model, load_tokenizer, model_folder, weights_hash, weights_name

gguf = pytest.importorskip("gguf")
SPECIAL = ["<pad>", "<bos>", "<eos>"]
TOKENS = [*SPECIAL, *sorted(ByteLevel.alphabet()), "Ġa"]
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "model.layers": "blk",
}
CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}it: {% endif %}"


def stored(name: str, weights: Tensor, model: LlamaForCausalLM) -> tuple[str, np.ndarray]:
    """Name and value of a weight in the file: in queries and keys the halves of a head's dimensions are interleaved."""
    if ".q_proj" in name or ".k_proj" in name:
        heads = model.config.num_attention_heads if ".q_proj" in name else model.config.num_key_value_heads
        rows, columns = weights.shape
        weights = weights.view(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return name, weights.detach().contiguous().numpy()


def write_gguf(model: LlamaForCausalLM, path: Path) -> Path:
    writer, config = gguf.GGUFWriter(path, "llama"), model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in TOKENS])
    writer.add_token_merges(["Ġ a"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_chat_template(CHAT)
    for name, weights in model.state_dict().items():
        writer.add_tensor(*stored(name, weights, model))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def original() -> LlamaForCausalLM:
    return tiny_models.llama(vocabulary=len(TOKENS))


@pytest.fixture(scope="module")
def file(original: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(original, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("D2UNLEARN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_model_of_the_file_is_the_one_that_was_written(original: LlamaForCausalLM, file: Path) -> None:
    loaded, ids = load_model(file), torch.tensor([[1, 40, 9, 77]])
    theirs = loaded.state_dict()
    assert {name: torch.equal(theirs[name], value) for name, value in original.state_dict().items()} == dict.fromkeys(
        theirs, True
    )
    assert torch.allclose(loaded(input_ids=ids).logits, original(input_ids=ids).logits, atol=1e-5)
    assert not hasattr(loaded.config, "quantization_config")


def test_its_tokenizer_and_chat_template_come_with_it(file: Path) -> None:
    tokenizer = load_tokenizer(file)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<eos>", "<pad>")
    ids = Template(tokenizer).question_ids("is a b?")
    assert tokenizer.decode(ids) == "user: is a b?\nit: "
    assert TOKENS.index("Ġa") in ids


def test_it_is_kept_under_the_file_s_hash_and_made_once(
    file: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of_gguf(file)
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"{file} is quantised: transformers made float32 weights of it, which are kept in {folder}"
    )
    assert folder.parent == cache / "gguf"
    moved = tmp_path / "tiny.gguf"
    moved.write_bytes(file.read_bytes())
    with patch("d2unlearn.gguf._dequantised", side_effect=AssertionError("made again")):
        assert model_folder(moved) == model_folder(folder) == folder
    assert weights_name(moved) == weights_hash(folder)
    assert capsys.readouterr().err == ""


def test_the_folder_is_a_normal_one(file: Path, tmp_path: Path) -> None:
    load_model(folder_of_gguf(file)).save_pretrained(tmp_path / "again")
    assert weights_hash(tmp_path / "again") == weights_hash(folder_of_gguf(file))
    assert "quantization_config" not in json.loads((tmp_path / "again" / "config.json").read_text())


def test_a_command_takes_the_file_for_the_model(file: Path) -> None:
    asked = ("generate", "--raw", "--prompt", "is a b?", "--max-new-tokens", 4, "--model")
    of_file, of_folder = d2(*asked, file), d2(*asked, folder_of_gguf(file))
    assert (of_file.code, of_file.out) == (0, of_folder.out)


@pytest.mark.parametrize("kept", [0, 3, 30, 0.2, 0.9])
def test_a_damaged_file_is_one_sentence(file: Path, tmp_path: Path, kept: float, cache: Path) -> None:
    content, damaged = file.read_bytes(), tmp_path / "damaged.gguf"
    damaged.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    sentence = refused(d2("generate", "--raw", "--prompt", "it", "--model", damaged))
    assert sentence.startswith(f"{damaged} could not be read as a GGUF model, or is damaged: ")
    assert not cache.exists()


def test_without_its_reader_one_sentence_says_what_to_install(file: Path) -> None:
    find = importlib.util.find_spec
    with patch("importlib.util.find_spec", lambda name, *_: None if name == "gguf" else find(name)):
        sentence = refused(d2("evaluate", "--model", file, "--forget", "f", "--retain", "r", "--output", "o"))
    assert sentence == f"{file} is a GGUF file, and the package that reads it is missing: pip install 'd2unlearn[demo]'"


def test_a_file_of_another_kind_is_none(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"GGUF and more")
    (tmp_path / "other.bin").write_bytes(b"PK")
    assert [is_gguf(tmp_path / name) for name in ("weights", "other.bin", "missing.gguf")] == [True, False, False]
    with pytest.raises(ModelError, match="is not a folder; give a Hugging Face model folder, a GGUF file or a hub name"):
        load_model(tmp_path / "missing.gguf")
