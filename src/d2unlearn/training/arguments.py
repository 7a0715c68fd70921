"""What a training run is told: transformers' arguments with the published recipe as defaults, and what unlearning adds."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase, TrainingArguments
from transformers.training_args import ParallelMode

from d2unlearn.errors import ConfigError
from d2unlearn.runtime import say


@dataclass
class UnlearnConfig(TrainingArguments):
    """transformers' TrainingArguments with the published recipe as defaults, and what unlearning adds.

    max_length: longer rows are cut there, in tokens. warmup_epochs: length of the warm-up, in epochs, at most
    half of the run (overrides warmup_steps). exclude_padded_rows: leave vocabulary rows that the tokenizer does not have out of
    energies.
    reference_cache: folder for what is computed of the frozen model or written by it; None computes it anew. eval_rows: at
    most so many rows of each kind are looked at in an evaluation. forget_below, keep_at_least: targets that training steers by
    and ends at (`d2unlearn.training.steering`); None: it has none. free_weights: which of the method's weights it may raise.
    """

    learning_rate: float = 1e-5
    num_train_epochs: float = 10.0
    per_device_train_batch_size: int = 8
    gradient_accumulation_steps: int = 4
    weight_decay: float = 0.01
    warmup_epochs: float = 1.0
    max_length: int = 512
    exclude_padded_rows: bool = False
    reference_cache: str | None = None
    eval_rows: int = 200
    forget_below: float | None = None
    keep_at_least: float = 0.99
    free_weights: list[str] = field(default_factory=lambda: ["gamma", "alpha"])
    remove_unused_columns: bool = False
    dataloader_pin_memory: bool = False
    logging_steps: float = 10
    eval_strategy: str = "epoch"
    save_strategy: str = "epoch"
    save_total_limit: int | None = 2
    metric_for_best_model: str | None = "selection"
    greater_is_better: bool | None = True
    load_best_model_at_end: bool = True

    def __post_init__(self) -> None:
        """Without evaluations or checkpoints there is no best one to load."""
        if "no" in (self.eval_strategy, self.save_strategy):
            self.load_best_model_at_end = False
        super().__post_init__()  # type: ignore[no-untyped-call]
        if self.fsdp_plugin_args is not None and "state_dict_type" not in (self.fsdp_config or {}):
            self.fsdp_plugin_args["state_dict_type"] = _SHARDED


_NEVER_RUN = ("cpu_offload", "cpu_ram_efficient_loading", "activation_checkpointing", "xla")
_SHARDED = "SHARDED_STATE_DICT"
CHECKPOINTING = next(name for name in ("activation_checkpointing", "gradient_checkpointing") if hasattr(UnlearnConfig, name))
"""The field's name: newer versions of transformers warn of the older one."""


def warmup_steps_of(args: UnlearnConfig, steps_per_epoch: int) -> int:
    """Steps of a warm-up of `warmup_epochs`, at most half of the run: its first step has no rate."""
    total = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps_per_epoch)
    return min(round(args.warmup_epochs * steps_per_epoch), total // 2)


def check_parallelism(args: UnlearnConfig) -> None:
    """Raises `ConfigError` for DeepSpeed, and for FSDP otherwise than by `fsdp=True`: version 2 with its checkpoints sharded.

    Several accelerators in one process: transformers would use DataParallel, which cuts up batches that this package put
    together; one is used, and the person is told.
    """
    if args.deepspeed or os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        raise ConfigError(
            ["DeepSpeed is not supported: --fsdp under torchrun (in Python fsdp=True) spreads what ZeRO-3 spreads, by FSDP2"]
        )
    if not args.fsdp and os.environ.get("ACCELERATE_USE_FSDP") == "true":
        raise ConfigError(["FSDP is asked for by accelerate's environment: start with torchrun, and say fsdp=True"])
    _check_fsdp(args)
    if args.n_gpu > 1:
        say(f"{args.n_gpu} devices are here and one is used: start with torchrun to use them all")
        args._n_gpu = 1


def _check_fsdp(args: UnlearnConfig) -> None:
    """Raises `ConfigError` for what of FSDP was never run here."""
    if not args.fsdp:
        return
    asked: Any = args.fsdp_config or {}
    unknown = [name for name in _NEVER_RUN if asked.get(name)]
    if unknown:
        raise ConfigError([f"FSDP with {unknown[0]} was never run here: leave it out of fsdp_config"])
    if int(asked.get("version", 2)) != 2 or asked.get("state_dict_type", _SHARDED) != _SHARDED:
        raise ConfigError(
            ["FSDP is version 2 with checkpoints in parts here: leave version and state_dict_type out of fsdp_config"]
        )
    if args.parallel_mode != ParallelMode.DISTRIBUTED:
        raise ConfigError(["fsdp spreads a model over several processes: start them with torchrun"])


def vocabulary_rows(args: UnlearnConfig, tokenizer: PreTrainedTokenizerBase | None) -> int | None:
    """How many rows of the vocabulary count, where those that the tokenizer does not have are left out; None: all."""
    if not args.exclude_padded_rows:
        return None
    if tokenizer is None:
        raise ConfigError(["exclude_padded_rows needs processing_class=tokenizer"])
    return len(tokenizer)
