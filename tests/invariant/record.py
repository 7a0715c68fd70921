"""Make `data/` anew: in `tests/`, `python -m invariant.record --write`. What it holds is then today's behaviour, no other.

Without `--write` the folder is made in a place of its own, for a look at what differs.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from . import walk


def made(folder: Path) -> None:
    """Everything, in an empty folder."""
    torch.set_num_threads(1)
    os.chdir(folder)
    _given()
    walk.well(*walk.UNLEARN)
    walk.well(*walk.CALIBRATE)
    for side in ("before", "after"):
        walk.well(*walk.evaluate(side, f"evaluation/{side}"))
    walk.well(*walk.COMPARE)
    old = {"gate": walk.gate(), "answered": walk.answered(), "generated": walk.generated()}
    old |= {"report": walk.reported(), "pages": walk.compared()}
    _write("old_files.json", {"recorded_at": walk.COMMIT, **old})
    runs = {method: walk.trajectory(method) for method in walk.METHODS}
    _write("trajectories.json", {"recorded_at": walk.COMMIT, "methods": runs})
    _tidy()


def _given() -> None:
    """A model that was taught two cities, one that knows only the other, rows about both, and what a comparison is told."""
    from comparison import tiny

    settings = tiny.settings_in(Path())
    tiny.write(Path("test.jsonl"), tiny.rows(3, 12, "Paris"))
    asked = [*walk.lines_of("forget.jsonl")[:6], *walk.lines_of("test.jsonl")[:6]]
    tiny.write(Path("questions.jsonl"), [{"prompt": row["question"]} for row in asked])
    settings = replace(settings, output="comparison")
    chosen = {key: value for key, value in asdict(settings).items() if value not in (None, {}, False)}
    Path("comparison.yaml").write_text(yaml.safe_dump(chosen, sort_keys=False), encoding="utf-8")


def _write(name: str, value: Any) -> None:
    Path(name).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _tidy() -> None:
    """Without what is made anew from the rest."""
    for folder in ("data", "locks", "logs", "pages", "settings", "work"):
        shutil.rmtree(Path("comparison") / folder, ignore_errors=True)
    for method in walk.METHODS:
        shutil.rmtree(f"run-{method}")
    for name in ("answers.jsonl", "report.html"):
        Path(name).unlink()
        Path(f"{name}.manifest.json").unlink()


if __name__ == "__main__":
    place = Path(tempfile.mkdtemp())
    made(place)
    if sys.argv[1:] == ["--write"]:
        shutil.rmtree(walk.DATA, ignore_errors=True)
        shutil.copytree(place, walk.DATA, copy_function=shutil.copyfile)
    sys.stdout.write(f"{place}\n")
