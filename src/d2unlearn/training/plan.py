"""`unlearn --plan`: what a run will need of memory, disk and time, before it is started.

Parameters and shapes come from the model's configuration, rows from the files; the memory is computed (`training/estimate.py`).
Where the run fits on this machine a few steps of it are made and timed; of a model that does not fit no weight is read.
"""

from __future__ import annotations

import math
import re
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import psutil  # type: ignore[import-untyped]
import torch
from torch import nn
from transformers import PreTrainedModel, TrainerCallback
from transformers.pytorch_utils import Conv1D

from d2unlearn.config import UnlearnSettings
from d2unlearn.data.holdout import hold_out
from d2unlearn.data.records import read_examples
from d2unlearn.errors import ConfigError
from d2unlearn.methods import Method
from d2unlearn.models import context_length, load_tokenizer, low_rank_config, model_outline
from d2unlearn.observation import causal_model
from d2unlearn.quantities import HiddenState, Quantity
from d2unlearn.quantization import check_quantization
from d2unlearn.runtime import pick_device, say, torch_dtype
from d2unlearn.schema import Kind, Tokens
from d2unlearn.training.arguments import CHECKPOINTING, UnlearnConfig
from d2unlearn.training.estimate import (
    FLOAT,
    ModelShape,
    PeakMemory,
    StepShape,
    TrainingSetup,
    alternatives,
    disk_bytes,
    peak_memory,
    step_operations,
    trained_parameters,
    training_steps,
)
from d2unlearn.training.monitor import take_snapshot
from d2unlearn.training.recipe import Pace
from d2unlearn.training.rounds import check_rounds, copies
from d2unlearn.training.rows import KINDS, Rows, Watched, render
from d2unlearn.training.run_input import build_method, loaded_model, pace_of
from d2unlearn.training.sharded import check_fsdp_run
from d2unlearn.training.steered_run import is_measured
from d2unlearn.training.trainer import UnlearnTrainer

GB = 1e9
UNITS = {"GB": 1e9, "GIB": 2.0**30, "MB": 1e6, "MIB": 2.0**20}
TIMED_STEPS = 3
"""The first of them is not counted."""
LOOKED_AT = 200
"""Rows of each kind that an evaluation looks at (`UnlearnConfig.eval_rows`)."""
PARTS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "copied_heads": "copies of the head",
    "stored": "the reference's values",
    "activations": "activations",
    "head_chunk": "logits and head gradient",
    "gathered": "gathered from others",
}


@dataclass(frozen=True)
class PlannedRun:
    """What is known of a run without weights: shapes, rows as token ids, pace."""

    settings: UnlearnSettings
    method: Method
    shape: ModelShape
    rows: dict[Kind, list[Tokens]]
    held_out: int
    weight_bytes: int
    saved_bytes: int
    pace: Pace

    @property
    def setup(self) -> TrainingSetup:
        """On one device."""
        settings = self.settings
        bits = int(settings.quantization[0]) if settings.quantization else None
        rank = settings.lora_rank if settings.lora else 0
        return TrainingSetup(self.weight_bytes, rank, bits, mixed=settings.bf16, checkpointing=settings.gradient_checkpointing)

    def step(self, *, on_host: bool) -> StepShape:
        """The largest micro-batch. on_host: what is stored lies in the same memory as the model."""
        batch = self.settings.batch_size
        answers = {kind: sorted((row.answer_length for row in rows), reverse=True) for kind, rows in self.rows.items()}
        positions = sum(sum(lengths[:batch]) for lengths in answers.values()) * len(self.method.needs) // len(KINDS)
        width = max(len(row.input_ids) for rows in self.rows.values() for row in rows)
        reading = any(
            isinstance(quantity, Quantity) and quantity.reads_reference_logits
            for needs in self.method.needs.values()
            for quantity in needs.policy
        )
        copied = int(not self.settings.lora) + int(reading)
        stored = self.stored_bytes if on_host else 0
        return StepShape(len(self.method.needs) * batch, width, positions, self.pace.accumulation, stored, copied)

    @property
    def stored_bytes(self) -> int:
        """The reference's values at every row, and the states of the rows that evaluations compare with."""
        total = 0
        for role, needs in self.method.needs.items():
            rows = self.rows["forget" if role in ("forget", "alternate") else "retain"]
            numbers = sum(self.shape.hidden if isinstance(q, HiddenState) else 1 for q in needs.reference)
            total += FLOAT * numbers * sum(row.answer_length for row in rows)
        looked = self.rows["retain"][:LOOKED_AT]
        return total + self.weight_bytes * self.shape.hidden * sum(row.answer_length for row in looked)


class Timed(NamedTuple):
    """Seconds of one update and of one row that is only looked at, and the most memory that was seen, bytes."""

    step: float
    row: float
    seen: float


def plan_unlearn(settings: UnlearnSettings) -> str:
    """The plan as text. Raises a `D2Error` for input that cannot be used."""
    memory = None if settings.memory is None else bytes_of(settings.memory)
    planned = planned_run(settings)
    here, program = device_memory(), program_bytes()
    parts = {"here": peak_memory(planned.shape, planned.step(on_host=here.on_host), planned.setup)}
    devices = settings.devices or 1
    if devices > 1 or memory is not None:
        asked = replace(planned.setup, devices=devices)
        step = planned.step(on_host=False)
        parts["elsewhere"] = peak_memory(planned.shape, step, asked)
        if devices > 1 and settings.quantization is None:
            parts["FSDP2"] = peak_memory(planned.shape, step, replace(asked, sharded=True))
    fits = parts["here"].peak + (program if here.on_host else 0) <= here.free
    timed = timed_steps(planned) if fits else None
    lines = [*_head_lines(planned, devices), *_table(parts, program if here.on_host else 0)]
    lines += _verdicts(planned, parts, here, program if here.on_host else 0, memory)
    lines += _disk_lines(planned) + _time_lines(planned, timed, devices) + rounds_lines(planned)
    return "\n".join(lines)


def planned_run(settings: UnlearnSettings) -> PlannedRun:
    """Read configuration, tokenizer and rows; no weights."""
    method = build_method(settings.method, settings.method_parameters)
    if settings.fsdp:
        measured = is_measured(settings)
        check_fsdp_run(method, processes=settings.devices or 2, quantization=settings.quantization, targets=measured)
    check_rounds(settings.method, method, lora=settings.lora, processes=settings.devices or 1)
    check_quantization(settings.quantization, lora=settings.lora, merge=settings.merge)
    outline, tokenizer = model_outline(settings.model), load_tokenizer(settings.model)
    length = min(settings.max_length, context_length(outline) or settings.max_length)
    read = {"group_size": settings.group_size, "columns": settings.columns}
    forget = read_examples(settings.forget, **read)  # type: ignore[arg-type]
    retain = hold_out(read_examples(settings.retain, **read), seed=settings.seed)  # type: ignore[arg-type]
    rows: dict[Kind, list[Tokens]] = {
        "forget": render(forget, tokenizer, length),
        "retain": render(retain.train, tokenizer, length),
    }
    saved = torch_dtype(settings.dtype) or outline.dtype
    in_memory = torch.float32 if settings.dtype == "auto" and not settings.lora else saved
    shape = model_shape(outline)
    pace = pace_of(settings, shape.parameters, len(forget), settings.devices or 1)
    return PlannedRun(settings, method, shape, rows, len(retain.held_out), in_memory.itemsize, saved.itemsize, pace)


def model_shape(model: PreTrainedModel) -> ModelShape:
    """From a model's configuration and modules; its weights may be missing (`torch.device("meta")`)."""
    config = model.config.get_text_config()
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    linear = [m for m in model.modules() if isinstance(m, nn.Linear | Conv1D) and m is not head]
    heads = int(config.num_attention_heads)
    width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    key_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    names = [name for name, _ in model.named_modules()]
    return ModelShape(
        vocabulary=int(config.vocab_size),
        hidden=int(config.hidden_size),
        layers=int(config.num_hidden_layers),
        intermediate=int(getattr(config, "intermediate_size", None) or 4 * config.hidden_size),
        heads=heads,
        query=heads * width,
        key=key_heads * width,
        tied=bool(config.tie_word_embeddings),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        linear_parameters=sum(m.weight.numel() for m in linear),
        linear_widths=sum(sum(m.weight.shape) for m in linear),
        gated=any(name.endswith(("gate_proj", "gate_up_proj")) for name in names),
    )


class DeviceMemory(NamedTuple):
    """What the device that a run here would use has to give, bytes; on_host: it is the machine's own memory."""

    free: float
    name: str
    on_host: bool


def device_memory() -> DeviceMemory:
    """Of the device that training would use."""
    device = pick_device()
    if device.type == "cuda":
        return DeviceMemory(float(torch.cuda.mem_get_info(device)[0]), torch.cuda.get_device_name(device), False)
    return DeviceMemory(float(psutil.virtual_memory().available), "this machine's memory", True)


def program_bytes() -> int:
    """What python and its libraries hold already."""
    return int(psutil.Process().memory_info().rss)


def bytes_of(text: str) -> float:
    """`80GB`, `24 GiB`, `512MB` in bytes. Raises `ConfigError` for anything else."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([GM]i?B)\s*", text, re.IGNORECASE)
    if found is None or not float(found[1]):
        raise ConfigError([f"memory should be a number with GB, GiB, MB or MiB, as in 80GB, not {text!r}"])
    return float(found[1]) * UNITS[found[2].upper()]


def timed_steps(planned: PlannedRun) -> Timed:
    """Make a few updates of the run on rows spread over its data, in a folder that is thrown away, and look at them once."""
    settings, pace = planned.settings, planned.pace
    needed = settings.batch_size * pace.accumulation
    chosen = {kind: _spread(rows, needed) for kind, rows in planned.rows.items()}
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        model, _ = loaded_model(replace(settings, fsdp=False))
        arguments = UnlearnConfig(
            folder,
            max_steps=TIMED_STEPS,
            per_device_train_batch_size=settings.batch_size,
            gradient_accumulation_steps=pace.accumulation,
            bf16=settings.bf16,
            use_cpu=pick_device().type == "cpu",
            eval_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
            report_to="none",
            **{CHECKPOINTING: settings.gradient_checkpointing},  # type: ignore[arg-type]
        )
        adapter = low_rank_config(settings.lora_rank) if settings.lora else None
        watched: dict[Watched, Rows] = {kind: rows[: settings.batch_size] for kind, rows in chosen.items()}
        say(f"plan: {TIMED_STEPS} steps are made and timed")
        trainer = UnlearnTrainer(
            model,
            arguments,
            planned.method,
            chosen["forget"],
            chosen["retain"],
            watched,
            peft_config=adapter,
            callbacks=[clock],
        )
        trainer.train()
        began = time.monotonic()
        assert trainer.model is not None
        take_snapshot(trainer.model, trainer.watched, batch_size=8, before=trainer.before, original=trainer.original)
        row = (time.monotonic() - began) / sum(len(rows) for rows in trainer.watched.values())
        device = next(causal_model(model).parameters()).device
        seen = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else program_bytes()
    return Timed(min(clock.steps[1:]), row, float(seen))


class _Clock(TrainerCallback):
    """Seconds of each update."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self._began = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.append(time.monotonic() - self._began)


def _spread(rows: Sequence[Tokens], count: int) -> list[Tokens]:
    """`count` rows spread evenly over those with an answer; all where there are fewer."""
    answered = [row for row in rows if row.answer_length]
    return [answered[number * len(answered) // count] for number in range(count)] if count < len(answered) else answered


def _head_lines(planned: PlannedRun, devices: int) -> list[str]:
    shape, pace, settings = planned.shape, planned.pace, planned.settings
    trained = trained_parameters(shape, planned.setup)
    forget, pairs = len(planned.rows["forget"]), settings.batch_size * pace.accumulation * devices
    steps = training_steps(forget, pairs, pace.epochs)
    what = f"{trained / 1e6:,.1f} million of them, by LoRA" if settings.lora else "all of them"
    base = f", the base in {settings.quantization[0]} bits" if settings.quantization else ""
    step = planned.step(on_host=False)
    on = f" on {devices} devices" if devices > 1 else ""
    return [
        f"parameters: {shape.parameters / 1e6:,.1f} million; trained: {what}{base}",
        f"rows: {forget} to forget, {len(planned.rows['retain'])} to keep, {planned.held_out} set aside; "
        f"longest {step.width} tokens, a batch {step.rows} rows with {step.positions} answer positions at most",
        f"steps: {steps} ({pace.epochs:g} epochs, {pairs} pairs a step{on}), "
        f"{step_operations(shape, step, planned.setup) * pace.accumulation:.2g} operations a step and device",
    ]


def _table(columns: dict[str, PeakMemory], program: float) -> list[str]:
    """Parts in GB, a column for each place."""
    titles = {"here": "here", "elsewhere": "each alone" if "FSDP2" in columns else "there", "FSDP2": "FSDP2"}
    lines = [f"{'memory of a device, GB':<26}" + "".join(f"{titles[name]:>12}" for name in columns)]
    for field, words in PARTS.items():
        values = [getattr(memory, field) for memory in columns.values()]
        if any(values):
            lines.append(f"  {words:<24}" + "".join(f"{value / GB:>12.2f}" for value in values))
    if program:
        lines.append(f"  {'python and libraries':<24}{program / GB:>12.2f}")
    peaks = [memory.peak + (program if name == "here" else 0) for name, memory in columns.items()]
    lines.append(f"  {'peak':<24}" + "".join(f"{peak / GB:>12.2f}" for peak in peaks))
    moments = dict.fromkeys(memory.moment for memory in columns.values())
    lines.append(f"  the peak comes {', '.join(moments)}; not all parts are there then")
    return lines


def _verdicts(
    planned: PlannedRun, columns: dict[str, PeakMemory], here: DeviceMemory, program: int, memory: float | None
) -> list[str]:
    """What fits where, and where the last column does not, what would need less."""
    peak = columns["here"].peak + program
    lines = [f"here: {peak / GB:.2f} of {here.free / GB:.2f} GB that are free ({here.name}): {_fits(peak, here.free)}"]
    limit = here.free - program
    if memory is not None:
        limit = memory
        lines += [
            f"{'FSDP2' if name == 'FSDP2' else 'each device with all of it'}: {parts.peak / GB:.2f} of {memory / GB:.2f} GB: "
            f"{_fits(parts.peak, memory)}"
            for name, parts in columns.items()
            if name != "here"
        ]
    if "FSDP2" in columns:
        how = f"torchrun --nproc-per-node {planned.settings.devices} --no-python d2unlearn unlearn ... --fsdp"
        lines.append(f"FSDP2: {how}; without --fsdp each device has all of it")
    last = list(columns)[-1]
    if columns[last].peak > limit:
        setup = planned.setup if last == "here" else replace(planned.setup, devices=planned.settings.devices or 1)
        setup = replace(setup, sharded=last == "FSDP2")
        step = planned.step(on_host=last == "here" and here.on_host)
        others = {name: peak_memory(planned.shape, step, other).peak for name, other in alternatives(setup).items()}
        lines.append("less: " + "; ".join(f"{name} {peak / GB:.2f} GB" for name, peak in others.items()))
    return lines


def _fits(needed: float, there: float) -> str:
    return "fits" if needed <= there else "does not fit"


def _disk_lines(planned: PlannedRun) -> list[str]:
    needed = disk_bytes(planned.shape, planned.setup, saved_bytes=planned.saved_bytes, stored=planned.stored_bytes)
    output = Path(planned.settings.output).absolute()
    nearest = next(folder for folder in (output, *output.parents) if folder.exists())
    free = shutil.disk_usage(nearest).free
    return [f"disk: {needed / GB:.2f} of {free / GB:.2f} GB that are free: {_fits(needed, free)}"]


def _time_lines(planned: PlannedRun, timed: Timed | None, devices: int) -> list[str]:
    if timed is None:
        return ["time: not measured, since the run does not fit here"]
    pace, settings = planned.pace, planned.settings
    forget = len(planned.rows["forget"])
    steps = training_steps(forget, settings.batch_size * pace.accumulation * devices, pace.epochs)
    evaluations = math.ceil(pace.epochs) if settings.keep == "best" else 0
    looked = min(forget, LOOKED_AT) + min(max(planned.held_out // 2, 1), LOOKED_AT)
    rows = forget + len(planned.rows["retain"]) + looked * (1 + evaluations)
    total = steps * timed.step + rows * timed.row
    where = f" on {devices} devices like this one" if devices > 1 else ""
    return [
        f"time: {timed.step:.2f} s a step, {timed.row:.3f} s a row looked at, measured here in {TIMED_STEPS} steps: "
        f"about {_duration(total)}{where}; memory seen after them: {timed.seen / GB:.2f} GB"
    ]


def rounds_lines(planned: PlannedRun) -> list[str]:
    """What a method with rounds needs beside all that; nothing for others."""
    plan = planned.method.deepening
    if plan is None:
        return []
    held = copies(plan) * planned.weight_bytes * planned.shape.parameters
    return [
        f"rounds: {plan.blocks} x {plan.rounds} follow, counted in none of these lines; they hold {copies(plan)} copies of the "
        f"weights, {held / GB:.2f} GB, beside activations"
    ]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
