"""The tables of benchmarks/README.md, from the committed results alone: no number in them is typed by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from d2unlearn.runtime import read_json
from tables import spread, table
from tofu_page import VARIANTS, minutes, read_runs, targets

Result = dict[str, Any]
OVERHEAD = 1.02
"""What guarded generation may cost, as a multiple of plain generation."""
SPEED_AIM = 5.0
"""How many times faster than the reference's plan the TOFU suite should be."""


@dataclass(frozen=True)
class Goal:
    """A ratio that the project set itself for each vocabulary size: `limits` by the size's name."""

    text: str
    limits: dict[str, float]
    at_most: bool
    measure: Callable[[Result], tuple[float, str]]

    def row(self, sizes: dict[str, Result]) -> list[str]:
        return [self.text, *(self._cell(sizes[name], self.limits.get(name)) for name in sizes)]

    def _cell(self, size: Result, limit: float | None) -> str:
        value, shown = self.measure(size)
        if limit is None:
            return shown
        sign, holds = ("≤", value <= limit) if self.at_most else ("≥", value >= limit)
        return f"{shown}; aim {sign} {limit:g}: {'reached' if holds else '**not reached**'}"


def ratio(part: str, name: str) -> Callable[[Result], tuple[float, str]]:
    """A ratio taken within rounds: its median, and the 10th to the 90th percentile."""

    def read(size: Result) -> tuple[float, str]:
        found = size[part][name]
        return found["median"], f"{found['median']:.2f} ({found['p10']:.2f} to {found['p90']:.2f})"

    return read


def peak(name: str) -> Callable[[Result], tuple[float, str]]:
    return lambda size: (size["peak_memory"][name], f"{size['peak_memory'][name]:.2f}")


GOALS = (
    Goal(
        "forward and backward: the reference's time / ours",
        {"4k": 2.9, "128k": 6.0},
        False,
        ratio("forward_and_backward_cpu", "reference_over_ours"),
    ),
    Goal("the same with the optimizer", {}, False, ratio("with_optimizer_cpu", "reference_over_ours")),
    Goal(
        "forward and backward: ours / a plain fine-tuning step",
        {"4k": 1.03, "128k": 0.75},
        True,
        ratio("forward_and_backward_cpu", "ours_over_plain"),
    ),
    Goal("peak memory: ours / the reference's", {"128k": 0.17}, True, peak("ours_over_reference")),
    Goal("peak memory: ours / a plain fine-tuning step", {}, True, peak("ours_over_plain")),
    Goal("our one pass over the reference / its forwards in one epoch", {}, True, ratio("reference_pass", "pass_over_epoch")),
)


def benchmark_blocks(results: Path) -> dict[str, str]:
    """Every table of the page, by the name of its mark."""
    return {
        "step-time": step_table(read_json(results / "step_time.json")),
        "generation-overhead": overhead_table(read_json(results / "generation_overhead.json")),
        "evaluation-time": evaluation_table(results / "evaluation_time.json"),
        "tofu": tofu_table(results / "tofu"),
    }


def step_table(result: Result) -> str:
    sizes, given = result["sizes"], result["settings"]
    rows = [goal.row(sizes) for goal in GOALS]
    note = f"{given['hardware']}, {given['threads']} thread, torch {given['torch']}, transformers {given['transformers']}."
    return table(["CPU time and memory", *(f"V = {name}" for name in sizes)], rows, "l" + "r" * len(sizes)) + f"\n{note}\n"


def overhead_table(result: Result) -> str:
    rows = []
    for case in result["cases"]:
        verdict = "reached" if case["ratio"] <= OVERHEAD else "**not reached**"
        spans = f"{case['ratio']:.3f} ({case['ratio_low']:.3f} to {case['ratio_high']:.3f})"
        times = [f"{case[name]:.2f}" for name in ("plain_ms", "guarded_ms")]
        rows.append([case["model"], f"{case['parameters'] / 1e6:.1f}M", str(case["batch_size"]), *times, spans, verdict])
    head = ["model", "parameters", "batch", "plain, ms a token", "guarded", "ratio (quartiles)", f"aim ≤ {OVERHEAD:g}"]
    note = f"{result['clock']} time, {result['threads']} thread, {result['machine']}, torch {result['torch']}, "
    return table(head, rows, "lrrrrrl") + f"\n{note}transformers {result['transformers']}.\n"


def evaluation_table(path: Path) -> str:
    """The suite's time and memory beside the reference's plan; a sentence while neither was measured."""
    if not path.is_file():
        return "Not measured yet.\n"
    result = read_json(path)
    models, given = result["models"], result["settings"]
    rows = [[label, *map(show, models.values())] for label, show in SPEED]
    note = (
        f"{given['hardware']}, {given['threads']} thread, load {given['load']}, torch {given['torch']}, transformers "
        f"{given['transformers']}. {given['suite']}; at most {given['rows']} rows a set, {given['rounds']} rounds.\n"
    )
    peaks = [
        [f"{each['vocabulary']:,}", str(each["length"]), f"{each['logits_mib']:,}", *mib(each["peak_mib"])]
        for each in result["memory"]
    ]
    head = ["vocabulary", "tokens a row", "all logits, MiB", "peak of the reference, MiB", "peak of ours, MiB"]
    return table(["time", *models], rows, "l" + "r" * len(models)) + f"\n{note}\n" + table(head, peaks, "rrrrr")


def mib(peaks: Result) -> list[str]:
    return [f"{peaks[name]:,.0f}" for name in ("reference", "ours")]


def speed(name: str) -> Callable[[Result], str]:
    """A ratio taken within rounds: its median, lowest and highest, and whether the aim is reached."""

    def show(model: Result) -> str:
        found = model[name]
        verdict = "reached" if found["median"] >= SPEED_AIM else "**not reached**"
        return f"{found['median']:.2f} ({found['lowest']:.2f} to {found['highest']:.2f}); aim ≥ {SPEED_AIM:g}: {verdict}"

    return show


def seconds(name: str) -> Callable[[Result], str]:
    return lambda model: " / ".join(f"{median(model[name][who]):,.1f}" for who in ("reference", "ours"))


def disagreement(model: Result) -> str:
    name, largest = next(iter(model["largest_differences"].items()))
    return f"{largest:.1e} (`{name}`, of {model['aggregates_compared']})"


SPEED: tuple[tuple[str, Callable[[Result], str]], ...] = (
    ("CPU time: the reference's / ours", speed("reference_over_ours_cpu")),
    ("elapsed time: the reference's / ours", speed("reference_over_ours_elapsed")),
    ("CPU seconds: reference / ours", seconds("cpu_seconds")),
    ("elapsed seconds: reference / ours", seconds("elapsed_seconds")),
    ("largest difference of an aggregate", disagreement),
)


def tofu_table(folder: Path) -> str:
    """How many of the targets each variant's runs reach; docs/results.md says which."""
    rows = []
    for variant, runs in read_runs(folder).items():
        held = ", ".join(str(sum(target.holds(run) for target in targets())) for run in runs)
        seeds = ", ".join(str(run["seed"]) for run in runs)
        rows.append([VARIANTS[variant], seeds, held, str(len(targets())), spread([minutes(run) for run in runs], digits=1)])
    return table(["variant", "seeds", "targets reached", "of", "minutes for `unlearn` and `calibrate`"], rows, "llrrr")
