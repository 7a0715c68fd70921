"""Training with FSDP2: what can be trained so, the model spread over the processes, and the whole of it saved at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, Trainer

from d2unlearn.errors import ConfigError
from d2unlearn.methods import Method
from d2unlearn.quantization import is_quantised
from d2unlearn.sharding import reshard, whole
from d2unlearn.training.arguments import UnlearnConfig

_ZERO_AT_FIRST = (True, "gaussian")
"""What LoRA's `init_lora_weights` may be for a fresh adapter to change nothing."""


def check_shardable(model: nn.Module, method: Method, args: UnlearnConfig, peft_config: Any) -> None:
    """Raises `ConfigError` for what FSDP2 cannot train here."""
    if is_quantised(model):
        raise ConfigError(["a quantised base is not spread over devices: leave fsdp out, or the quantisation"])
    if method.deepening is not None:
        raise ConfigError([f"{type(method).__name__} makes its rounds in one process: leave fsdp out"])
    if method.self_written is not None:
        raise ConfigError([f"{type(method).__name__} lets the model write first, which one process has to do: leave fsdp out"])
    if args.forget_below is not None:
        raise ConfigError(["targets steer no training with FSDP: leave forget_below out, or fsdp"])
    if peft_config is not None and getattr(peft_config, "init_lora_weights", None) not in _ZERO_AT_FIRST:
        raise ConfigError(["with FSDP an adapter has to begin as one that changes nothing: LoRA, without init_lora_weights"])


def sharded_model(accelerator: Any, model: nn.Module) -> nn.Module:
    """The model with each weight spread over the processes by its first dimension, layer by layer, in place.

    Raises `ConfigError` where a weight that is trained has fewer rows than there are processes.
    """
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    processes = accelerator.num_processes
    short = [name for name, weight in model.named_parameters() if weight.requires_grad and weight.shape[0] < processes]
    if short:
        few = f"{short[0]} has fewer rows than the {processes} processes to spread it over"
        raise ConfigError([f"{few}: take fewer of them, or a higher lora_rank"])
    spread: nn.Module = fsdp2_prepare_model(accelerator, model)
    return spread


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


def save_gathered(trainer: Trainer, folder: Path) -> None:
    """The model as `from_pretrained` reads it (of LoRA the adapter), gathered weight by weight by the first process."""
    model: Any = trainer.model
    first = trainer.is_world_process_zero()
    state = gathered_state(model, keep=first)
    if first:
        model.save_pretrained(folder, state_dict=state)
        tokenizer: Any = trainer.processing_class
        if isinstance(tokenizer, PreTrainedTokenizerBase):
            tokenizer.save_pretrained(folder)
    trainer.accelerator.wait_for_everyone()


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
