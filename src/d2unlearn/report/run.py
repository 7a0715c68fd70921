"""`report` from files to a page: two evaluations, and what the artifact says of its gate and its making."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from d2unlearn.errors import DataError
from d2unlearn.evaluation.store import read_evaluation
from d2unlearn.report.gate import read_gate_summary
from d2unlearn.report.html import build
from d2unlearn.runtime import atomic_write, read_json
from d2unlearn.schema import Evaluation

RESULT = "evaluation.json"


def run_report(before: str | Path, after: str | Path, artifact: str | Path | None, output: str | Path) -> Path:
    """Write the page and return its path. Raises `DataError` for files that are no evaluations."""
    path = Path(output)
    folder = None if artifact is None else Path(artifact)
    gate = None if folder is None else read_gate_summary(folder)
    page = build(_evaluation(before), _evaluation(after), gate, {} if folder is None else _facts(folder))
    atomic_write(path, page)
    return path.resolve()


def _evaluation(place: str | Path) -> Evaluation:
    path = Path(place)
    return read_evaluation(path / RESULT if path.is_dir() else path)


def _facts(artifact: Path) -> Mapping[str, Any]:
    """The manifest without what would fill a page: the hashes of held-out rows and the training's history."""
    path = artifact / "d2_manifest.json"
    if not path.is_file():
        raise DataError(f"{artifact} has no d2_manifest.json; give the folder that `d2unlearn unlearn` wrote")
    manifest = read_json(path)
    training = {k: v for k, v in manifest.get("training", {}).items() if not isinstance(v, (list, dict))}
    settings = {k: v for k, v in manifest.get("settings", {}).items() if k in ("model", "seed", "lora", "epochs", "batch_size")}
    return {
        "method": manifest.get("method", {}),
        "learning rate": manifest.get("learning_rate"),
        "settings": settings,
        "data": manifest.get("data", {}),
        "training": training,
        "versions": manifest.get("versions", {}),
    }
