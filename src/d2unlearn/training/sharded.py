"""Training with FSDP2: what can be trained so, the model spread over processes, and the part of each read from the files."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from d2unlearn.errors import ConfigError
from d2unlearn.methods import Method
from d2unlearn.models import check_causal, weights_folder
from d2unlearn.observation import causal_model
from d2unlearn.quantization import is_quantised
from d2unlearn.runtime import drawing_from
from d2unlearn.sharding import names_of_weights, own_part, own_rows
from d2unlearn.stored_tensors import StoredTensor, stored_rows, stored_tensors
from d2unlearn.training.arguments import UnlearnConfig

_ZERO_AT_FIRST = (True, "gaussian")
"""What LoRA's `init_lora_weights` may be for a fresh adapter to change nothing."""
_QUANTISED = "a quantised base is not spread over devices: leave fsdp out, or the quantisation"


def check_fsdp_run(method: Method, *, processes: int, quantization: str | None, targets: bool) -> None:
    """Raises `ConfigError`, before anything is loaded, for a run that FSDP2 cannot make. targets: it steers by some."""
    if processes < 2:
        raise ConfigError(["--fsdp spreads a model over several processes: start them with torchrun --nproc-per-node N"])
    if quantization is not None:
        raise ConfigError([_QUANTISED])
    if targets:
        raise ConfigError(["the measured recipe puts whole weights back after its probe: leave its targets out, or --fsdp"])
    _check_method(method)


def _check_method(method: Method) -> None:
    if method.deepening is not None:
        raise ConfigError([f"{type(method).__name__} makes its rounds in one process: leave fsdp out"])
    if method.self_written is not None:
        raise ConfigError([f"{type(method).__name__} lets the model write first, which one process has to do: leave fsdp out"])


def check_shardable(model: nn.Module, method: Method, args: UnlearnConfig, peft_config: Any) -> None:
    """Raises `ConfigError` for what FSDP2 cannot train here."""
    if is_quantised(model):
        raise ConfigError([_QUANTISED])
    _check_method(method)
    if args.forget_below is not None:
        raise ConfigError(["targets steer no training with FSDP: leave forget_below out, or fsdp"])
    first = None if peft_config is None else getattr(peft_config, "init_lora_weights", None)
    if peft_config is not None and first not in _ZERO_AT_FIRST:
        raise ConfigError(["with FSDP an adapter has to begin as one that changes nothing: LoRA, without init_lora_weights"])
    if peft_config is not None and first is not True and is_unread(model):
        raise ConfigError(["an adapter of a model read in parts is drawn as LoRA draws its own: leave init_lora_weights out"])


def is_unread(model: nn.Module) -> bool:
    """Whether weights are still to be read (`d2unlearn.models.unread_model`)."""
    return any(weight.is_meta for weight in model.parameters())


def sharded_model(accelerator: Any, model: nn.Module, *, seed: int) -> nn.Module:
    """The model with each weight spread over the processes by its first dimension, layer by layer, in place.

    Of one whose weights are not read each process now reads its part. seed: what fresh adapters are drawn from. Raises
    `ConfigError` where a weight that is trained has fewer rows than there are processes.
    """
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    processes, unread = accelerator.num_processes, is_unread(model)
    short = [name for name, weight in model.named_parameters() if weight.requires_grad and weight.shape[0] < processes]
    if short:
        few = f"{short[0]} has fewer rows than the {processes} processes to spread it over"
        raise ConfigError([f"{few}: take fewer of them, or a higher lora_rank"])
    spread: nn.Module = fsdp2_prepare_model(accelerator, model)
    if unread:
        read_parts(spread, accelerator.device, seed=seed)
    return spread


@torch.no_grad()
def read_parts(model: nn.Module, device: torch.device, *, seed: int) -> None:
    """Memory for this process's part of each weight, filled from the files; adapters are drawn as `peft` does from `seed`.

    Nothing is whole in memory but one weight of an adapter at a time. Raises `ModelError` for a model that is not causal.
    """
    causal: Any = causal_model(model)
    source = causal.name_or_path
    model._apply(lambda tensor: torch.empty_like(tensor, device=device) if tensor.is_meta else tensor)  # type: ignore[no-untyped-call]
    with drawing_from(seed):
        for layer in model.modules():
            for name in getattr(layer, "lora_A", ()):
                _draw_adapter(layer, name)
    stored = {tensor.name: tensor for tensor in stored_tensors(weights_folder(source))}
    named = names_of_weights(causal)
    for tensor in causal.state_dict(keep_vars=True).values():
        found = [stored[name] for name in named.get(id(tensor), ()) if name in stored]
        if found:
            _fill(tensor, found[0])
    check_causal(model, source)


def _fill(tensor: Tensor, stored: StoredTensor) -> None:
    rows, part = own_rows(tensor), own_part(tensor)
    if part.numel():
        part.copy_(stored_rows(stored, rows))


def _draw_adapter(layer: Any, name: str) -> None:
    """The weights of a fresh LoRA of a linear layer: both matrices are drawn once as linear layers, then the first again."""
    first, second = layer.lora_A[name].weight, layer.lora_B[name].weight
    drawn = nn.Linear(first.shape[1], first.shape[0], bias=False)
    nn.Linear(second.shape[1], second.shape[0], bias=False)
    nn.init.kaiming_uniform_(drawn.weight, a=math.sqrt(5))
    own_part(first).copy_(drawn.weight[own_rows(first)].to(layer.get_base_layer().weight.dtype))
    own_part(second).zero_()


def spread_over_cpus(trainer: Trainer) -> None:
    """Tells accelerate, which offers FSDP on accelerators only, that these processes on CPUs share a model too."""
    from accelerate import DistributedType, FullyShardedDataParallelPlugin

    state: Any = trainer.accelerator.state
    if state.distributed_type == DistributedType.MULTI_CPU:
        state.distributed_type = DistributedType.FSDP
        state.fsdp_plugin = FullyShardedDataParallelPlugin(**trainer.args.fsdp_plugin_args)
        if state.mixed_precision != "no":
            state.fsdp_plugin.set_mixed_precision(state.mixed_precision)
        trainer.is_fsdp_enabled = True
