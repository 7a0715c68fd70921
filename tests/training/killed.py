"""Runs that are killed (SIGKILL, from within) at a chosen moment, each in a process of its own that starts without delay.

A server process imports everything once and is forked for each run.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from d2unlearn import artifact
from d2unlearn.config import UnlearnSettings
from d2unlearn.training import unlearn
from d2unlearn.training.checkpoints import COMPLETE
from d2unlearn.training.trainer import UnlearnTrainer
from d2unlearn.training.unlearn import run_unlearn

from . import runs

IMPORTED = [
    "d2unlearn.training.unlearn",
    "transformers.models.llama.modeling_llama",
    "transformers.models.gpt2.modeling_gpt2",
    "peft",
]
Moment = Literal["step", "weights", "optimizer", "mark", "deletion", "manifest", "publish", "published"]


def exit_code(function: Callable[..., None], *arguments: Any) -> int | None:
    """How a fresh process that runs `function` ends: -9 when it was killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    process = context.Process(target=function, args=arguments)
    process.start()
    process.join(120)
    return process.exitcode


def unlearn_until(settings: UnlearnSettings, moment: Moment, number: int) -> None:
    torch.set_num_threads(1)
    die_at(moment, number)
    run_unlearn(settings)


def train_until(
    folder: Path, model: Callable[[], PreTrainedModel], changes: dict[str, Any], moment: Moment, number: int
) -> None:
    torch.set_num_threads(1)
    die_at(moment, number)
    runs.trainer(folder, model(), **changes).train()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(moment: Moment, number: int) -> None:
    """Arrange for a kill: before step `number`, while checkpoint `number` is written or deleted, or around publishing."""
    match moment:
        case "step":
            _die_before_step(number)
        case "weights":
            _die_half_way(PreTrainedModel, "save_pretrained", f"checkpoint-{number}", "model.safetensors")
        case "optimizer":
            _die_in_torch_save(f"checkpoint-{number}")
        case "mark":
            _die_before(Path, "touch", lambda path, *_: path.name == COMPLETE and path.parent.name == f"checkpoint-{number}")
        case "deletion":
            _die_in_deletion(f"checkpoint-{number}")
        case "manifest":
            _die_before(unlearn, "write_json", lambda path, *_: True)
        case "publish":
            _die_before(artifact.os, "replace", lambda source, *_: Path(source).name == "artifact")
        case "published":
            _die_before(artifact, "clear", lambda *_: True)


def _die_before(owner: Any, name: str, when: Callable[..., bool]) -> None:
    original = getattr(owner, name)

    def patched(*arguments: Any, **options: Any) -> Any:
        if when(*arguments):
            die()
        return original(*arguments, **options)

    setattr(owner, name, patched)


def _die_before_step(number: int) -> None:
    started = 0
    original = UnlearnTrainer.get_batch_samples

    def patched(*arguments: Any, **options: Any) -> Any:
        nonlocal started
        started += 1
        if started == number:
            die()
        return original(*arguments, **options)

    UnlearnTrainer.get_batch_samples = patched  # type: ignore[method-assign]


def _die_half_way(owner: Any, name: str, folder: str, file: str) -> None:
    """Write a file, cut it in the middle, and die."""
    original = getattr(owner, name)

    def patched(self: Any, place: Any, *arguments: Any, **options: Any) -> Any:
        found = original(self, place, *arguments, **options)
        if Path(place).name == folder:
            path = Path(place) / file
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            die()
        return found

    setattr(owner, name, patched)


def _die_in_torch_save(folder: str) -> None:
    original = torch.save

    def patched(value: Any, path: Any, *arguments: Any, **options: Any) -> None:
        original(value, path, *arguments, **options)
        if Path(path).parent.name == folder:
            Path(path).write_bytes(Path(path).read_bytes()[:1000])
            die()

    torch.save = patched


def _die_in_deletion(folder: str) -> None:
    """Delete what a checkpoint cannot do without, leave its mark, and die."""
    original = shutil.rmtree

    def patched(path: Any, *arguments: Any, **options: Any) -> None:
        if Path(path).name == folder:
            (Path(path) / "model.safetensors").unlink()
            die()
        original(path, *arguments, **options)

    shutil.rmtree = patched
