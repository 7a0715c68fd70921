"""The folder that comes out, and the one where it is made: a reader of `--output` never sees a half-written artifact.

    OUTPUT            a Hugging Face model folder, `d2_manifest.json` (what was done) and, once calibrated, `d2_gate.json`
    OUTPUT.partial    checkpoints, the stored reference and the staged artifact, until OUTPUT is complete
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from d2unlearn import __version__
from d2unlearn.errors import ArtifactError
from d2unlearn.runtime import read_json, remove, write_json

MANIFEST = "d2_manifest.json"
FORMAT = 1
LIBRARIES = ("torch", "transformers", "accelerate", "peft", "datasets", "safetensors", "tokenizers", "numpy")


def is_done(output: Path, key: str) -> bool:
    """Whether `output` holds the result of exactly this run. Raises `ArtifactError` when it holds something else."""
    if not output.exists():
        return False
    if output.is_file() or (any(output.iterdir()) and not (output / MANIFEST).is_file()):
        raise ArtifactError(f"{output} exists and is not an artifact; choose another --output")
    if not any(output.iterdir()):
        return False
    if read_json(output / MANIFEST).get("key") == key:
        return True
    raise ArtifactError(f"{output} holds the result of other inputs or settings; remove it or choose another --output")


def open_workspace(output: Path, key: str) -> Path:
    """The folder to work in; one that an interrupted run with the same key left is taken up again."""
    workspace = output.with_name(f"{output.name}.partial")
    note = workspace / "run.json"
    if note.is_file() and read_json(note).get("key") != key:
        raise ArtifactError(f"{workspace} belongs to an interrupted run with other inputs or settings; remove it first")
    try:
        workspace.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(f"cannot make {workspace}: {error.strerror}") from error
    write_json(note, {"key": key})
    return workspace


def publish(staged: Path, output: Path, workspace: Path) -> None:
    """Put the staged artifact in its place in one step, then remove the workspace."""
    if output.is_dir():
        output.rmdir()  # empty: `is_done` has looked
    os.replace(staged, output)
    remove(workspace)


def manifest(command: str, key: str, **sections: Any) -> dict[str, Any]:
    """The manifest's common part with the given sections."""
    return {"format": FORMAT, "command": command, "key": key, "versions": versions(), **sections}


def versions() -> dict[str, str]:
    """This package's version and those of the libraries that results depend on."""
    return {"d2unlearn": __version__, **{name: version(name) for name in LIBRARIES}}


def read_manifest(folder: Path) -> Mapping[str, Any] | None:
    """An artifact's manifest; None for a model folder that this package did not write."""
    path = folder / MANIFEST
    return read_json(path) if path.is_file() else None
