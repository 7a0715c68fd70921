"""Of the retain model's logs what a benchmark's metrics are held against, small enough to be kept with the results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from d2unlearn.benchmark.open_unlearning import CONVENTION_KEY, eval_file, read_logs
from d2unlearn.benchmark.suites import TOFU
from d2unlearn.runtime import write_json

COMPARED = ("forget_truth_ratio",)
"""Metrics that are compared example by example; of all others the number is enough."""


def keep_logs(evaluated: Path, target: Path) -> None:
    """Write to `target` every metric's number of an evaluated benchmark, and the scores of each example where compared."""
    kept: dict[str, Any] = {}
    for key, entry in read_logs(evaluated / eval_file(TOFU), TOFU).items():
        kept[key] = {"agg_value": entry.get("agg_value")}
        if key in COMPARED:
            scores = {index: {"score": record["score"]} for index, record in entry["value_by_index"].items()}
            kept[key]["value_by_index"] = scores
        if key == CONVENTION_KEY:
            kept[key]["convention"] = entry["convention"]
    write_json(target, kept)
