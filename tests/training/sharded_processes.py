"""What test_sharded.py runs: one training run, in one process that has all of a model or in several that share it by FSDP2."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import tiny_models
from d2unlearn.methods import METHODS
from d2unlearn.training.trainer import UnlearnTrainer
from training import runs

IMPORTED = ["d2unlearn.training.unlearn", "transformers.models.llama.modeling_llama", "peft", "torch.distributed.checkpoint"]
SAVED, STEPS = 3, 5
CUT = {1: (6, 2), 2: (3, 2), 3: (2, 2), 4: (3, 1)}
"""Pairs of a micro-batch, and micro-batches a step, so that every number of processes takes twelve pairs a step."""
KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "adapter": {"peft_config": runs.lora(), "activation_checkpointing": True},
    "frozen_head": {"method": METHODS["undial"]()},
}
"""`frozen_head`: a method that reads the reference's logits, and a model whose head is its embedding."""


def in_processes(count: int, function: Callable[..., None], *arguments: Any) -> None:
    """Run `function` in `count` processes of one group, as torchrun would start them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [context.Process(target=_one_of, args=(rank, count, port, function, arguments)) for rank in range(count)]
    for process in started:
        process.start()
    for process in started:
        process.join(300)
    assert [process.exitcode for process in started] == [0] * count


def _one_of(rank: int, count: int, port: int, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    function(*arguments)
    torch.distributed.destroy_process_group()


def made(folder: Path, kind: str, processes: int, **changes: Any) -> UnlearnTrainer:
    """A trainer for five steps of twelve pairs, with a checkpoint after the third."""
    size, accumulation = CUT[processes]
    given: dict[str, Any] = {
        "fsdp": processes > 1,
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": accumulation,
        "max_steps": STEPS,
        "save_strategy": "steps",
        "save_steps": SAVED,
    }
    model = tiny_models.llama(tied=kind == "frozen_head")
    return runs.trainer(folder / kind, model, **{**given, **KINDS[kind], **changes})


def trained(folder: Path, kind: str, processes: int, resumed: Path | None = None, **changes: Any) -> None:
    """Train, look at the model, keep it as a folder, and write down what was logged."""
    trainer = made(folder, kind, processes, **changes)
    trainer.train(resume_from_checkpoint=None if resumed is None else str(resumed))
    trainer.evaluate()
    trainer.save_model(str(folder / kind / "kept"))
    held = sum(getattr(weight, "_local_tensor", weight).numel() for weight in trainer.model.parameters())
    (folder / kind / f"held-{trainer.args.process_index}.json").write_text(json.dumps(held))
    if trainer.is_world_process_zero():
        (folder / kind / "log.json").write_text(json.dumps(trainer.state.log_history))


def all_trained(folder: Path, processes: int) -> None:
    for kind in KINDS:
        trained(folder, kind, processes)
    if processes > 1:
        trained(folder / "best", "full", processes, eval_strategy="steps", eval_steps=SAVED)
