"""What test_sharded.py runs: one training run, in one process that has all of a model or in several that share it by FSDP2."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

import tiny_models
from d2unlearn.config import UnlearnSettings
from d2unlearn.methods import METHODS
from d2unlearn.training import gathered, run_input
from d2unlearn.training.trainer import UnlearnTrainer
from d2unlearn.training.unlearn import run_unlearn
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
    """A trainer for five steps of twelve pairs, with a checkpoint after the third that keeps the optimizer's state."""
    size, accumulation = CUT[processes]
    given: dict[str, Any] = {
        "fsdp": processes > 1,
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": accumulation,
        "max_steps": STEPS,
        "save_strategy": "steps",
        "save_steps": SAVED,
        "save_total_limit": None,
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


def all_trained(folder: Path, processes: int, settings: UnlearnSettings, tied: UnlearnSettings) -> None:
    """tied: for a model whose head is its embedding."""
    for kind in KINDS:
        trained(folder, kind, processes)
    commanded(folder / "adapter-artifact", processes, dataclasses.replace(tied, lora=True, dtype="bfloat16", epochs=1))
    if processes == 1:
        commanded(folder / "artifact", processes, settings)
    if processes == 2:
        interrupted(folder / "artifact", processes, settings)


def commanded(output: Path, processes: int, settings: UnlearnSettings) -> None:
    """`unlearn` with twelve pairs a step; of several processes none may load the whole model."""
    size, accumulation = CUT[processes]
    if processes > 1:
        run_input.load_model = None  # type: ignore[assignment]
        gathered.FILE_BYTES = 20_000
    cut = {"batch_size": size, "accumulation": accumulation, "fsdp": processes > 1}
    run_unlearn(dataclasses.replace(settings, output=str(output), **cut))


def interrupted(output: Path, processes: int, settings: UnlearnSettings) -> None:
    """As `commanded`, and it ends with an error at the second evaluation."""
    evaluate = UnlearnTrainer.evaluate

    def once(trainer: UnlearnTrainer, *args: Any, **given: Any) -> dict[str, float]:
        if trainer.state.global_step > trainer.steps_per_epoch:
            raise RuntimeError("killed")
        return evaluate(trainer, *args, **given)

    UnlearnTrainer.evaluate = once  # type: ignore[method-assign, assignment]
    with suppress(RuntimeError):
        commanded(output, processes, settings)
