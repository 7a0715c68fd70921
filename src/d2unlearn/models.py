"""The only place that loads weights and tokenizers, and that says which weights they are."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from huggingface_hub import snapshot_download
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from d2unlearn.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Adapter, adapter_of
from d2unlearn.compatibility import check_rows, plain_config
from d2unlearn.errors import ArtifactError, ModelError, border
from d2unlearn.gguf import folder_of_gguf, is_gguf
from d2unlearn.loaded_files import GENERATION_CONFIG_FILE, check_loadable
from d2unlearn.quantization import base_is_held, held_alike, quantization_config
from d2unlearn.runtime import fingerprint, hash_file, progress, read_json, said_if_long
from d2unlearn.schema import GATE_COPY, GATE_FILE
from d2unlearn.sharding import names_of_weights, whole
from d2unlearn.stored_tensors import StoredTensor, stored_tensors
from d2unlearn.template_date import pinned

BLOCK = 2**22
ONE_ANSWER = {
    **{"num_beams": 1, "num_return_sequences": 1, "return_dict_in_generate": False},
    **{"output_scores": False, "output_logits": False, "output_attentions": False, "output_hidden_states": False},
    **{"max_time": None, "prompt_lookup_num_tokens": None, "stop_strings": None},
}
"""Options of `generate` for one sequence of ids a prompt, whatever the model's own generation configuration says."""


def load_model(
    source: str | Path,
    *,
    dtype: torch.dtype | None = None,
    trust_remote_code: bool = False,
    quantization: str | None = None,
) -> PreTrainedModel:
    """A causal language model in evaluation mode, from a folder, a hub name (safetensors only), a GGUF file, or the folder of a
    PEFT adapter, which is merged into its base; one that was trained on a quantised base stays beside it, quantised alike.

    dtype None keeps the dtype of the weights; quantization: `4bit` or `8bit` by bitsandbytes. The copy of a gate is taken out
    of the configuration: it belongs to the folder, and would be saved with other weights once these are trained.

    Raises `ModelError` when there is no model, its weights are damaged or of a kind that cannot be read here, or it is no
    causal model: an encoder, an encoder with a decoder, or one whose head is not among its weights; `ConfigError` where what
    reads a quantised one is missing.
    """
    source = model_folder(source)
    adapter = adapter_of(source)
    if adapter is not None:
        held = base_is_held(adapter.folder)
        return _merged(adapter, dtype, trust_remote_code) if held is None else _beside(adapter, held, dtype)
    if Path(source).is_dir():
        check_loadable(Path(source))
    what = _not_loaded(source, f"a causal language model{_quantised(source)}")
    with border(ModelError, what), said_if_long(f"loading {source}"):
        config = _causal_config(source, trust_remote_code=trust_remote_code)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(source),
            dtype=dtype or "auto",
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **_quantized(quantization, dtype or config.dtype),
        )
    model: PreTrainedModel = loaded[0]
    missing = sorted(loaded[1]["missing_keys"])
    if missing:
        raise ModelError(
            f"{source} has no causal language-model head, or its files are incomplete: its weights lack "
            f"{', '.join(missing[:3])}"
        )
    vars(model.config).pop(GATE_COPY, None)
    held_alike(model)
    model.eval()  # type: ignore[no-untyped-call]
    check_causal(model, source)
    return model


def _causal_config(source: str | Path, *, trust_remote_code: bool = False) -> Any:
    """A model's configuration. Raises `ModelError` for a model without a causal head."""
    config = AutoConfig.from_pretrained(str(source), trust_remote_code=trust_remote_code)
    known = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not config.is_encoder_decoder
    if not known and not trust_remote_code:
        raise ModelError(f"{source} is a {config.model_type} model, which has no causal language-model head")
    return config


def check_causal(model: torch.nn.Module, source: str | Path) -> None:
    """Raises `ModelError` for a model that cannot be run, and for one that sees later tokens. Of a sharded one all call it."""
    with border(ModelError, f"{source} was loaded and cannot be run"):
        sees_ahead = _sees_ahead(model)
    if sees_ahead:
        raise ModelError(f"{source} is no causal model: what it predicts depends on the tokens that come later")


def unread_model(source: str | Path, *, dtype: torch.dtype | None = None) -> PreTrainedModel | None:
    """A causal model in evaluation mode of which no weight is read: they lie on the meta device, its buffers on the CPU.

    FSDP2 spreads it, and each process then reads its own part (`d2unlearn.training.sharded`). None where files cannot be read
    so: those of an adapter, of quantised weights, and those that name their weights otherwise than the model does.
    """
    source = model_folder(source)
    if adapter_of(source) is not None or "quantization_config" in plain_config(source):
        return None
    with border(ModelError, _not_loaded(source, "a causal language model")):
        folder, config = weights_folder(source), _causal_config(source)
        kept = dtype or config.dtype
        with init_empty_weights(include_buffers=False):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=kept)  # type: ignore[no-untyped-call]
        model.tie_weights()  # each weight was put on the meta device by itself
        if (folder / GENERATION_CONFIG_FILE).is_file():
            model.generation_config = GenerationConfig.from_pretrained(str(folder))
    stored = {tensor.name for tensor in stored_tensors(folder)}
    if kept is None or any(stored.isdisjoint(names) for names in names_of_weights(model).values()):
        return None
    vars(model.config).pop(GATE_COPY, None)
    model.eval()  # type: ignore[no-untyped-call]
    return model


def weights_folder(source: str | Path) -> Path:
    """Where a model's files lie: the folder itself, or the hub's snapshot in the cache, downloaded where it is not there."""
    source = model_folder(source)
    if Path(source).is_dir():
        check_loadable(Path(source))
        return Path(source)
    return Path(snapshot_download(str(source), allow_patterns=["*.json", "*.safetensors"]))


def _quantized(quantization: str | None, dtype: torch.dtype | None) -> dict[str, Any]:
    """How weights are held, as `from_pretrained` is told."""
    return {} if quantization is None else {"quantization_config": quantization_config(quantization, dtype or torch.float32)}


def _beside(adapter: Adapter, quantization: str, dtype: torch.dtype | None) -> PreTrainedModel:
    """The base as it was quantised, with the adapter in its layers. Raises `ModelError` for an adapter of another model."""
    model = load_model(adapter.base, dtype=dtype, quantization=quantization)
    with border(ModelError, f"the PEFT adapter in {adapter.folder} does not fit its base {adapter.base}"), _quiet_peft():
        model.load_adapter(str(adapter.folder))
    model.eval()  # type: ignore[no-untyped-call]
    return model


def merged_adapter(source: str | Path, adapter: Path, *, quantization: str, dtype: torch.dtype) -> PreTrainedModel:
    """A quantised base made plain again, with an adapter that was trained on it merged into its weights, in `dtype`."""
    from peft import PeftModel

    base: Any = load_model(source, dtype=dtype, quantization=quantization).dequantize(dtype=dtype)  # type: ignore[no-untyped-call]
    with _quiet_peft():
        merged: PreTrainedModel = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()
    vars(merged.config).pop("quantization_config", None)
    return merged


def model_outline(source: str | Path) -> PreTrainedModel:
    """A model's modules and shapes without any weight, on torch's meta device. Raises `ModelError` when there is no model."""
    source = model_folder(source)
    adapter = adapter_of(source)
    if adapter is not None:
        return model_outline(adapter.base)
    with border(ModelError, _not_loaded(source, "a causal language model")):
        config = AutoConfig.from_pretrained(str(source))
        with torch.device("meta"):
            outline: PreTrainedModel = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    return outline


def _merged(adapter: Adapter, dtype: torch.dtype | None, trust_remote_code: bool) -> PreTrainedModel:
    """The adapter's base with the adapter in its weights. Raises `ModelError` for either missing, or where they do not fit."""
    from peft import PeftModel

    try:
        base = load_model(adapter.base, dtype=dtype, trust_remote_code=trust_remote_code)
    except ModelError as error:
        raise ModelError(f"{adapter.folder} holds a PEFT adapter, and its base could not be loaded: {error}") from error
    with border(ModelError, f"the PEFT adapter in {adapter.folder} does not fit its base {adapter.base}"):
        with _quiet_peft():
            warnings.filterwarnings("error", "Found missing adapter keys")
            adapted: Any = PeftModel.from_pretrained(base, str(adapter.folder))
        merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
    merged.name_or_path = merged.config.name_or_path = str(adapter.folder)  # what a further adapter is one of
    merged.eval()  # type: ignore[no-untyped-call]
    return merged


def load_tokenizer(source: str | Path, *, trust_remote_code: bool = False, date: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, hub name, GGUF file, or adapter (its own, else its base's).

    Chat templates that write the date are pinned: to `date`, else to the folder's gate's, else to today. Raises `ModelError`
    when there is no tokenizer, and for one that may write ids that the model's embedding has no rows for.
    """
    source = model_folder(source)
    adapter = adapter_of(source)
    if adapter is not None and not (adapter.folder / "tokenizer_config.json").is_file():
        return load_tokenizer(adapter.base, trust_remote_code=trust_remote_code, date=date)
    with border(ModelError, _not_loaded(source, "a tokenizer")):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(source), trust_remote_code=trust_remote_code)
    check_rows(tokenizer, source if adapter is None else adapter.base)
    own, fixed = tokenizer.chat_template, date or _date_of_gate(Path(source))
    if isinstance(own, str):
        tokenizer.chat_template = pinned(own, fixed)
    elif isinstance(own, dict):
        tokenizer.chat_template = {name: pinned(each, fixed) for name, each in own.items()}
    return tokenizer


def _date_of_gate(folder: Path) -> str | None:
    """What the gate's file says; None for a gate of a template without a date, and for one that cannot be read."""
    try:
        date = read_json(folder / GATE_FILE).get("date")
    except ArtifactError:
        return None
    return date if isinstance(date, str) else None


def _quantised(source: str | Path) -> str:
    found = plain_config(source).get("quantization_config")
    return f" (it is quantised with {found.get('quant_method', 'an unnamed method')})" if isinstance(found, dict) else ""


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """An id to fill up batches with; which one does not matter, since masks never come from it."""
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)
    return 0


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> list[int]:
    """The ids that end an answer: the generation configuration's, else the tokenizer's; empty when neither has one."""
    configured = model.generation_config.eos_token_id if model.generation_config is not None else None
    if configured is None and tokenizer is not None:
        configured = tokenizer.eos_token_id
    if configured is None:
        return []
    return [int(i) for i in configured] if isinstance(configured, list) else [int(configured)]


def generate_of(model: PreTrainedModel) -> Callable[..., Any]:
    """The model's `generate` as its class defines it, past a gate that came with its files (`custom_generate`)."""
    plain: Any = type(model)
    return partial(plain.generate, model)


def generate_plainly(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    max_new_tokens: int,
    pad_id: int,
    ends: Sequence[int],
    **options: Any,
) -> Any:
    """What `generate_of(model)` returns for one sequence a prompt, greedy unless the options say otherwise.

    Nothing is compiled: a hook inside a compiled graph would not be called.
    """
    plain = {**ONE_ANSWER, "do_sample": False, "pad_token_id": pad_id, "eos_token_id": list(ends) or None}
    given = {"input_ids": input_ids, "attention_mask": attention_mask, "max_new_tokens": max_new_tokens}
    return generate_of(model)(**{**given, **plain, "disable_compile": True, **options})


def low_rank_config(rank: int) -> Any:
    """What `peft` is told of adapters at all linear layers, as LoRA is trained here."""
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")


def with_fresh_adapter(model: torch.nn.Module, peft_config: Any) -> torch.nn.Module:
    """`peft.get_peft_model` without the warnings that peft itself causes: in newer transformers, and at GPT-2's layers."""
    from peft import get_peft_model

    with _quiet_peft():
        adapted_model: torch.nn.Module = get_peft_model(model, peft_config)
    return adapted_model


@contextmanager
def _quiet_peft() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False", UserWarning)
        yield


def context_length(model: PreTrainedModel) -> int | None:
    """How many tokens the model takes, prompt and answer together; None where its configuration does not say."""
    length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return None if length is None else int(length)


def context_of(source: str | Path) -> int | None:
    """`context_length` of a model that is not loaded. Raises `ModelError` for a configuration that cannot be read."""
    source = model_folder(source)
    adapter = adapter_of(source)
    if adapter is not None:
        return context_of(adapter.base)
    with border(ModelError, _not_loaded(source, "a model's configuration")):
        config = AutoConfig.from_pretrained(str(source)).get_text_config()
    length = getattr(config, "max_position_embeddings", None)
    return None if length is None else int(length)


def weights_hash(folder: str | Path) -> str:
    """sha256 over the names, dtypes, shapes and bytes of the weights that the loader opens in a folder, whatever the sharding;
    of an adapter's folder over its own and its base's.

    Raises `ModelError` when the folder holds no safetensors weights, or says that they lie elsewhere.
    """
    adapter = adapter_of(folder)
    if adapter is not None:
        config = read_json(adapter.folder / ADAPTER_CONFIG)
        config.pop("base_model_name_or_path")
        return fingerprint(
            [config, hash_file(adapter.folder / ADAPTER_WEIGHTS), weights_name(adapter.base), base_is_held(adapter.folder)]
        )
    total, tensors = hashlib.sha256(), sorted(stored_tensors(Path(folder)))
    blocks = sum(1 + -(-tensor.length // BLOCK) for tensor in tensors)
    for block in progress(_content_of(tensors), f"reading {folder}", total=blocks):
        total.update(block)
    return total.hexdigest()


def _content_of(tensors: Sequence[StoredTensor]) -> Iterator[bytes]:
    """What tells each tensor from others, then its bytes in blocks."""
    for tensor in tensors:
        yield json.dumps([tensor.name, tensor.dtype, tensor.shape]).encode()
        with tensor.path.open("rb") as file:
            file.seek(tensor.start)
            left = tensor.length
            while left:
                block = file.read(min(left, BLOCK))
                if not block:
                    raise ModelError(f"{tensor.path} is cut short: {tensor.name} lacks {left} bytes")
                yield block
                left -= len(block)


def weights_name(source: str | Path) -> str:
    """What tells a model's weights from others in a cache's key: a folder's `weights_hash` (also of the one that a GGUF file
    is kept in), the name of one on the hub.

    Raises `ModelError` when a folder holds no safetensors files.
    """
    source = folder_of_gguf(source) if is_gguf(source) else source
    return weights_hash(source) if Path(source).is_dir() else str(source)


def state_hash(model: torch.nn.Module) -> str:
    """sha256 over a model's parameters and buffers in memory: which weights a cached reference belongs to."""
    total = hashlib.sha256()
    for name, tensor in progress(sorted(model.state_dict().items()), "hashing weights"):
        total.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        total.update(whole(tensor).cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def model_folder(source: str | Path) -> str | Path:
    """Where transformers finds a model: the folder of a GGUF file's weights, made on the first call; else `source` itself.

    Raises `ModelError` for a path that looks local and is no model folder, so that a typo is not looked up on the hub.
    """
    if is_gguf(source):
        return folder_of_gguf(source)
    path = Path(source)
    looks_local = path.is_absolute() or str(source).startswith((".", "~")) or path.exists() or str(source).count("/") > 1
    if looks_local and not (path / "config.json").is_file() and adapter_of(path) is None:
        reason = "has no config.json" if path.is_dir() else "is not a folder"
        raise ModelError(f"{source} {reason}; give a Hugging Face model folder, a GGUF file or a hub name")
    return source


def _not_loaded(source: str | Path, what: str) -> str:
    if Path(source).is_dir():
        return f"{source} could not be loaded as {what}"
    return f"{source} is no folder here, and the hub gave no model of that name"


@torch.no_grad()
def _sees_ahead(model: torch.nn.Module) -> bool:
    """Whether another last token changes what is predicted before it, as it does in an encoder."""
    device = next(model.parameters()).device
    first, second = model(input_ids=torch.tensor([[0, 1, 0], [0, 1, 1]], device=device)).logits[:, :2].float()
    return bool((first - second).abs().max() > 0.01 * (first.max() - first.min()))


def quiet_transformers() -> None:
    """Keep transformers' own bars and notices away from the command line's output."""
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
