"""The table of docs/recipe.md: the recipe by size beside the measured one, a run a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tables import number, table

HEAD = [
    "rows",
    "seed",
    "recipe",
    "rate",
    "steps",
    "kept at",
    "forget",
    "reworded",
    "retained",
    "near",
    "target",
    "met",
    "CPU s",
]
RECIPES = ("size", "measured")


def recipe_blocks(results: Path) -> dict[str, str]:
    """The table by its mark."""
    found = json.loads((results / "recipe.json").read_text(encoding="utf-8"))
    runs = sorted(found["runs"], key=lambda run: (run["lora"], run["rows"], run["seed"], RECIPES.index(run["recipe"])))
    note = (
        f"{found['parameters']} parameters, {found['hardware']}. Forget, reworded: mean answer probability; retained, "
        "near: share of the tokens that the original had right; "
        "target: at most this of forget and reworded, and 0.99 of the others.\n"
    )
    return {"recipes": f"{table(HEAD, [_row(run) for run in runs], 'rrlrrrrrrrrlr')}\n{note}"}


def _row(run: dict[str, Any]) -> list[str]:
    shares = [_known(run[name]) for name in ("forget", "reworded", "retain", "near", "forget_below")]
    named = f"{run['recipe']}{', LoRA' if run['lora'] else ''}"
    first = [str(run["rows"]), str(run["seed"]), named, f"{run['learning_rate']:g}", str(run["steps"]), str(run["kept_step"])]
    return [*first, *shares, {True: "yes", False: "no", None: "–"}[run["met"]], f"{run['seconds']:.0f}"]


def _known(value: float | None) -> str:
    return "–" if value is None else number(value)
