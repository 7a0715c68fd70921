"""What training takes: time, and memory beyond what the process held before; and what machine it was measured on."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from d2unlearn.comparison.records import NO_COST, TrainingCost
from d2unlearn.runtime import pick_device

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""What Linux takes for: begin the process's peak anew."""


@dataclass
class Meter:
    """Filled in when its block ends."""

    cost: TrainingCost = NO_COST


@contextmanager
def metered() -> Iterator[Meter]:
    """Measure a block, if it ends well. Memory of an accelerator where there is one, else the process's (Linux only)."""
    device, meter = pick_device(), Meter()
    held = _begin(device)
    started, worked = time.monotonic(), time.process_time()
    yield meter
    peak = _peak(device) - held
    meter.cost = TrainingCost(time.monotonic() - started, time.process_time() - worked, peak, device.type)


def machine() -> str:
    """The machine in words."""
    device = pick_device()
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = torch.get_num_threads()
    return f"{platform.machine()} CPU, {cores} cores, {threads} thread{'s' if threads > 1 else ''} a run"


def _begin(device: torch.device) -> float:
    """Bytes held now; the peak begins anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return float(torch.cuda.memory_allocated(device))
    try:
        CLEAR.write_text(RESET_PEAK)
    except OSError:
        return math.nan
    return _status("VmRSS")


def _peak(device: torch.device) -> float:
    return float(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else _status("VmHWM")


def _status(name: str) -> float:
    """A line of the process's status in bytes; NaN where there is none."""
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return math.nan
    return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), math.nan)
