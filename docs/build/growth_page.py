"""The tables and the figure of docs/large_models.md: memory measured beside computed, growth, and shapes too large to hold."""

from __future__ import annotations

import json
from math import log10
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, StrMethodFormatter

from comparison_page import figure_files
from d2unlearn.report.figures import FORGET_COLOUR, RETAIN, STYLE, Drawing, plain_axes, svg_of
from d2unlearn.training.estimate import StepShape, TrainingSetup, llama_shape, peak_memory, step_operations
from tables import ROOT, table

SHAPES = {
    "1B": llama_shape(128256, 2048, 16, 8192, 32, 8, tied=True),
    "8B": llama_shape(128256, 4096, 32, 14336, 32, 8),
    "70B": llama_shape(128256, 8192, 80, 28672, 64, 8),
}
"""Llama 3's: parameters in the embedding among them."""
SETUPS = {
    "full, bf16 autocast": (TrainingSetup(mixed=True, checkpointing=True), 1),
    "LoRA, weights in bf16": (TrainingSetup(weight_bytes=2, lora_rank=16, mixed=True, checkpointing=True), 0),
    "LoRA, base in 4 bits": (TrainingSetup(weight_bytes=2, lora_rank=16, bits=4, mixed=True, checkpointing=True), 0),
}
DEVICES = (1, 8, 64)


def growth_blocks(results: Path) -> dict[str, str]:
    """Each table by its mark."""
    kept = json.loads((results / "growth.json").read_text(encoding="utf-8"))
    sweeps = ("vocabulary", "tokens", "rows", "hidden", "layers")
    setups = {name: entry for name, entry in kept.items() if name.split()[0] not in sweeps}
    grown = {name: entry for name, entry in kept.items() if name not in setups}
    return {"memory-measured": measured_table(setups), "growth": measured_table(grown), "large-shapes": large_table()}


def measured_table(entries: dict[str, Any]) -> str:
    rows = [
        [
            name,
            f"{entry['parameters'] / 1e6:.1f}",
            f"{entry['measured']['mib']:.0f}",
            f"{entry['estimated']['mib']:.0f}",
            f"{entry['ratio'] - 1:+.0%}",
            f"{entry['measured']['seconds']:.2f}",
        ]
        for name, entry in entries.items()
    ]
    return table(["", "million parameters", "measured, MiB", "computed, MiB", "off by", "CPU seconds a step"], rows, "lrrrrr")


def large_table() -> str:
    """16 rows of 256 tokens a device, a third of them answer; whole on one device, by FSDP2 on more."""
    rows = []
    for size, shape in SHAPES.items():
        for name, (setup, copied) in SETUPS.items():
            step = StepShape(16, 256, positions=16 * 85, copied_heads=copied)
            peaks = [
                peak_memory(shape, step, TrainingSetup(**{**vars(setup), "devices": n, "sharded": n > 1})).peak for n in DEVICES
            ]
            operations = step_operations(shape, step, setup) / 1e12
            rows.append([size, name, *(f"{peak / 1e9:.1f}" for peak in peaks), f"{operations:.0f}"])
    head = ["", "", *(f"{n} device{'s' if n > 1 else ''}, GB each" for n in DEVICES), "10^12 operations a step and device"]
    return table(head, rows, "llrrrr")


def growth_figure(results: Path) -> dict[Path, str]:
    """Memory and time against the vocabulary, and computed against measured memory of all cases."""
    kept = json.loads((results / "growth.json").read_text(encoding="utf-8"))
    source = Path(__file__).read_bytes() + repr(kept).encode()
    with rc_context(STYLE):
        drawing = Drawing(svg_of(draw_growth(kept), "growth"), "")
    return figure_files("growth", drawing, source, ROOT / "docs" / "figures")


def draw_growth(kept: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(9.6, 3.2))
    left, right = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.08, right=0.98, bottom=0.19, top=0.87, wspace=0.28)
    words = [entry for name, entry in kept.items() if name.startswith("vocabulary")]
    sizes = [entry["case"]["vocabulary"] for entry in words]
    left.plot(sizes, [entry["measured"]["mib"] for entry in words], "o-", color=FORGET_COLOUR, label="measured")
    left.plot(sizes, [entry["estimated"]["mib"] for entry in words], "--", color=RETAIN, label="computed")
    left.set_xlabel("vocabulary")
    left.set_title("memory, MiB", loc="left", fontsize=12.5, fontweight="bold")
    left.legend(frameon=False)
    pairs = [(entry["measured"]["mib"], entry["estimated"]["mib"]) for entry in kept.values()]
    right.loglog([a for a, _ in pairs], [b for _, b in pairs], "o", color=FORGET_COLOUR)
    ends = [min(a for a, _ in pairs), max(a for a, _ in pairs)]
    right.loglog(ends, ends, "--", color=RETAIN)
    right.set_xlabel("measured, MiB")
    right.set_title("computed, MiB", loc="left", fontsize=12.5, fontweight="bold")
    for axes in (left, right):
        plain_axes(axes)
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    left.xaxis.set_major_formatter(FuncFormatter(lambda words, _: f"{words / 1000:.0f}k"))
    decades = [10.0**power for power in range(int(log10(ends[0])), int(log10(ends[1])) + 2)]
    for axis in (right.xaxis, right.yaxis):
        axis.set_major_locator(FixedLocator(decades))
        axis.set_minor_formatter(NullFormatter())
        axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    return figure
