"""`report` from files to a page: two evaluations, and what the artifact says of its gate and its making."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from d2unlearn.errors import DataError
from d2unlearn.outputs import check_file, has_mark, note_of, output_place, read_note, with_mark
from d2unlearn.redaction import is_redacted, redacted
from d2unlearn.report.audited import read_audit_summary
from d2unlearn.report.gate import read_gate_summary
from d2unlearn.report.html import build
from d2unlearn.runtime import atomic_write, fingerprint, hash_file, read_json, said_if_long, write_json
from d2unlearn.schema import EVALUATION_FILE, GATE_FILE, MANIFEST_FILE, Evaluation, GateSummary
from d2unlearn.serialization import read_evaluation
from d2unlearn.version import __version__


def run_report(
    before: str | Path,
    after: str | Path,
    artifact: str | Path | None,
    output: str | Path,
    audit: str | Path | None = None,
    *,
    redact: bool = False,
    force: bool = False,
) -> Path:
    """Write the page, with a manifest beside it, and return its path. redact: without questions, answers and replies.

    Raises `DataError` for files that are no evaluations or no audit, and for those of another gate than the artifact's;
    `ArtifactError` where something else than a page of these evaluations is there, unless with `force`.
    """
    path, files = output_place(output), {"before": _file(before), "after": _file(after)}
    first, second = (read_evaluation(file) for file in files.values())
    mark = _check_replaced(path, files, force=force)
    if redact or is_redacted(first) or is_redacted(second):
        first, second = redacted(first), redacted(second)
    folder = None if artifact is None else Path(artifact)
    gate = None if folder is None else read_gate_summary(folder)
    _check_gate(second, gate, files["after"])
    audited = None if audit is None else read_audit_summary(audit, path, _gate_fingerprint(folder))
    with said_if_long("drawing the page"):
        page = build(first, second, gate, {} if folder is None else _facts(folder), audited, _recipe(folder))
    atomic_write(path, with_mark(page, mark))
    made_of = {name: {"source": str(file), "sha256": hash_file(file)} for name, file in files.items()}
    note = {
        "command": "report",
        "version": __version__,
        **made_of,
        "artifact": None if folder is None else str(folder),
    }
    note |= {} if audit is None else {"audit": str(audit)}
    write_json(output_place(note_of(path)), note)
    return path.resolve()


def _check_replaced(path: Path, files: Mapping[str, Path], *, force: bool) -> str:
    """The mark of a page of these evaluations. Raises `ArtifactError` where something else is there, unless with `force`."""
    hashes = {name: hash_file(file) for name, file in files.items()}
    mark, note = f"report {fingerprint(hashes)}", read_note(path, "report", force=force)
    drawn = {name: (note.get(name) or {}).get("sha256") for name in hashes}  # a page of earlier versions has no mark
    check_file(path, made=has_mark(path, mark) or drawn == hashes, force=force, inputs=files.values())
    return mark


def _check_gate(after: Evaluation, gate: GateSummary | None, file: Path) -> None:
    """Raises `DataError` when the evaluation was made behind another gate than the artifact's."""
    if gate is None or after.threshold is None:
        return
    if after.score_name != gate.score_name or not math.isclose(after.threshold, gate.threshold, rel_tol=1e-6):
        raise DataError(
            f"{file} was evaluated behind another gate ({after.score_name}, threshold {after.threshold:.4g}) than the artifact "
            f"has now ({gate.score_name}, {gate.threshold:.4g}); run `d2unlearn evaluate` on it again"
        )


def _gate_fingerprint(artifact: Path | None) -> str:
    """As the gate's own (`EnergyGate.fingerprint`); empty where there is none."""
    path = None if artifact is None else artifact / GATE_FILE
    return "" if path is None or not path.is_file() else fingerprint(read_json(path))


def _file(source: str | Path) -> Path:
    path = Path(source)
    return path / EVALUATION_FILE if path.is_dir() else path


def _recipe(artifact: Path | None) -> Mapping[str, Any] | None:
    """What the manifest holds of a measured recipe; None where there was none."""
    path = None if artifact is None else artifact / MANIFEST_FILE
    recipe = read_json(path).get("recipe") if path is not None and path.is_file() else None
    return recipe if isinstance(recipe, Mapping) and "path" in recipe else None


def _facts(artifact: Path) -> Mapping[str, Any]:
    """The manifest without what would fill a page: the hashes of held-out rows and the training's history."""
    path = artifact / MANIFEST_FILE
    if not path.is_file():
        raise DataError(f"{artifact} has no {MANIFEST_FILE}; give the folder that `d2unlearn unlearn` wrote")
    manifest = read_json(path)
    training = {k: v for k, v in manifest.get("training", {}).items() if not isinstance(v, (list, dict))}
    settings = {k: v for k, v in manifest.get("settings", {}).items() if k in ("model", "seed", "lora", "epochs", "batch_size")}
    calibration = manifest.get("calibration", {})
    made = {"unlearned": manifest.get("made"), "calibrated": calibration.get("made")}
    hashes = {f"{whose} weights, sha256": value for whose, value in manifest.get("weights", {}).items()}
    return {
        **({"made": told} if (told := {name: value for name, value in {**made, **hashes}.items() if value}) else {}),
        "method": manifest.get("method", {}),
        "learning rate": manifest.get("learning_rate"),
        "settings": settings,
        "data": manifest.get("data", {}),
        "training": training,
        "versions": manifest.get("versions", {}),
    }
