"""A model that is spread over processes as a folder: gathered weight by weight, and one process keeps what it writes next."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, Trainer

from d2unlearn.loaded_files import INDEX, WEIGHTS
from d2unlearn.observation import causal_model
from d2unlearn.runtime import write_json
from d2unlearn.sharding import names_of_weights, reshard, whole

FILE_BYTES = 5 * 10**9
"""Of a file of weights: the first process holds so much, and one weight."""


def save_gathered(trainer: Trainer, folder: Path) -> None:
    """The model as `from_pretrained` reads it (of LoRA the adapter), gathered whole by the first process."""
    first = trainer.is_world_process_zero()
    save_state(trainer.model, folder, first=first)
    tokenizer: Any = trainer.processing_class
    if first and isinstance(tokenizer, PreTrainedTokenizerBase):
        tokenizer.save_pretrained(folder)
    trainer.accelerator.wait_for_everyone()


def save_state(model: Any, folder: Path, *, first: bool) -> None:
    """`save_pretrained` of a model that is spread, of adapters these alone; all processes call it, the `first` one writes."""
    state = gathered_state(model, keep=first)
    if first:
        model.save_pretrained(folder, state_dict=state)


def gathered_state(model: nn.Module, *, keep: bool) -> dict[str, Tensor]:
    """Every weight (of adapters those that are trained) as a whole, on the CPU; empty where `keep` is not said.

    All processes have to call this together; those that keep nothing hold one weight at a time.
    """
    reshard(model)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    kept: dict[str, Tensor] = {}
    seen: dict[int, Tensor] = {}  # a head that is the embedding stays one with it
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in trained or not hasattr(model, "peft_config"):
            weight = whole(tensor)
            if keep:
                kept[name] = seen.setdefault(id(tensor), weight.cpu())
    return kept


@torch.no_grad()
def save_merged(model: nn.Module, folder: Path, *, dtype: torch.dtype, first: bool) -> None:
    """A plain model folder, as `from_pretrained` reads it, in `dtype`, adapters merged into the weights.

    All processes have to call this together; the `first` one writes, and holds the weights of one file at a time, of at most
    `FILE_BYTES` (of a model whose files name their weights otherwise than it does, all of them).
    """
    reshard(model)
    causal: Any = causal_model(model)
    adapters = _adapters(causal)
    renamed = bool(getattr(causal, "_weight_conversions", None))
    tensors = _saved_once(causal)
    files = _cut(tensors, dtype, math.inf if renamed else FILE_BYTES)
    if first:
        folder.mkdir(parents=True, exist_ok=True)
    for number, names in enumerate(files):
        held = {}
        for name in names:
            weight = _as_saved(_merged(whole(tensors[name]), adapters.get(name)), dtype)
            if first:
                held[name] = weight.cpu().contiguous()
        if first and renamed:
            causal.save_pretrained(folder, state_dict=held)
        elif first:
            save_file(held, folder / _file_name(number, len(files)), metadata={"format": "pt"})
    if first:
        _save_configuration(causal, dtype, folder)
        if len(files) > 1:
            placed = {name: _file_name(number, len(files)) for number, names in enumerate(files) for name in names}
            total = sum(_bytes_saved(tensor, dtype) for tensor in tensors.values())
            write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": placed})


def _saved_once(causal: Any) -> dict[str, Tensor]:
    """Weights and buffers by the names that they have without adapters; of tied ones the first name alone."""
    left_out = set(causal._keys_to_ignore_on_save or ())
    by_id = {id(tensor): tensor for tensor in causal.state_dict(keep_vars=True).values()}
    return {names[0]: by_id[key] for key, names in names_of_weights(causal).items() if names[0] not in left_out}


def _adapters(causal: nn.Module) -> dict[str, Any]:
    """The LoRA layers by the name of the weight that each changes."""
    return {f"{name}.weight": layer for name, layer in causal.named_modules() if hasattr(layer, "lora_A")}


def _merged(weight: Tensor, layer: Any) -> Tensor:
    """A weight with its LoRA in it, in the weight's dtype. Every process gathers the adapter's matrices."""
    for name in [] if layer is None else layer.active_adapters:
        change = whole(layer.lora_B[name].weight) @ whole(layer.lora_A[name].weight) * layer.scaling[name]
        weight = (weight + (change.T if layer.fan_in_fan_out else change)).to(weight.dtype)
    return weight


def _cut(tensors: Mapping[str, Tensor], dtype: torch.dtype, limit: float) -> list[list[str]]:
    """The names in order, cut into files of at most `limit` bytes; what is larger has a file of its own."""
    files: list[list[str]] = [[]]
    size = 0
    for name, tensor in tensors.items():
        more = _bytes_saved(tensor, dtype)
        if files[-1] and size + more > limit:
            files.append([])
            size = 0
        files[-1].append(name)
        size += more
    return files


def _as_saved(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _bytes_saved(tensor: Tensor, dtype: torch.dtype) -> int:
    return tensor.numel() * (dtype.itemsize if tensor.is_floating_point() else tensor.element_size())


def _file_name(number: int, count: int) -> str:
    return WEIGHTS if count == 1 else f"{Path(WEIGHTS).stem}-{number + 1:05d}-of-{count:05d}.safetensors"


def _save_configuration(causal: Any, dtype: torch.dtype, folder: Path) -> None:
    causal.config.dtype = str(dtype).removeprefix("torch.")
    causal.config.architectures = [type(causal).__name__.removeprefix("FSDP")]
    causal.config.save_pretrained(folder)
    if causal.can_generate():
        causal.generation_config.save_pretrained(folder)
