"""`calibrate` from settings to `d2_gate.json` in the artifact, and the lines that say what was found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from d2unlearn.artifact import DONE, read_manifest
from d2unlearn.artifact import manifest as new_manifest
from d2unlearn.config import CalibrateSettings, identity
from d2unlearn.data.identity import is_among
from d2unlearn.data.records import content_hash, read_examples
from d2unlearn.errors import GateError
from d2unlearn.gate.export import is_carried
from d2unlearn.gate.gate import EnergyGate
from d2unlearn.models import load_model, load_tokenizer, weights_hash
from d2unlearn.runtime import check_writable, fingerprint, write_json
from d2unlearn.schema import GATE_FILE, MANIFEST_FILE, Example
from d2unlearn.version import __version__


def run_calibrate(settings: CalibrateSettings) -> Iterator[str]:
    """Calibrate, write the gate into the model's folder, and yield lines for a person."""
    folder = Path(settings.model)
    if not folder.is_dir():
        raise GateError(f"{settings.model} is not a folder: the gate is written beside the weights it belongs to")
    check_writable(folder / GATE_FILE)
    manifest = read_manifest(folder) or {}
    seed = _seed(settings, manifest)
    settings = replace(settings, seed=seed)
    held_out = set(manifest["held_out"]) if "held_out" in manifest else None
    retain, note = _unseen(
        read_examples(settings.retain, group_size=settings.group_size, columns=settings.columns), held_out, settings.retain
    )
    forget = None
    if settings.forget is not None:
        forget = read_examples(settings.forget, group_size=settings.group_size, columns=settings.columns)
    key = _key(settings, folder, retain, forget)
    if manifest.get("calibration", {}).get("key") == key and _has_gate(folder):
        if not is_carried(folder):
            EnergyGate.from_pretrained(folder).save(folder)
        yield DONE.format(folder / GATE_FILE)
        return
    yield note
    tokenizer = load_tokenizer(folder)
    gate = EnergyGate.calibrate(
        load_model(folder),
        tokenizer,
        retain,
        forget,
        max_false_refusal=settings.max_false_refusal,
        confidence=settings.confidence,
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.batch_size,
        refusal_texts=settings.refusal or None,
        score=settings.score,
        vocab_rows=len(tokenizer) if _excludes_padded_rows(manifest) else None,
        seed=seed,
        folder=folder,
    )
    gate.save(folder)
    section = {"key": key, "settings": asdict(settings), "version": __version__}
    write_json(folder / MANIFEST_FILE, {**(manifest or new_manifest("calibrate", key)), "calibration": section})
    yield from gate.describe()
    yield f"{folder / GATE_FILE}"


def _has_gate(folder: Path) -> bool:
    """Whether there is a gate that can be used: not one that was cut short, edited, or written by an older version."""
    try:
        EnergyGate.from_pretrained(folder)
    except GateError:
        return False
    return True


def _unseen(examples: Sequence[Example], held_out: set[str] | None, source: str) -> tuple[list[Example], str]:
    """The rows to calibrate on: those that `unlearn` set aside, where the file holds them; and a line that says which."""
    if held_out is None:
        return list(
            examples
        ), f"unlearn made no note beside the model: all {len(examples)} rows of {source} are taken as unseen"
    chosen = [example for example in examples if is_among(example, held_out)]
    if chosen:
        return chosen, f"{len(chosen)} rows of {source} that unlearn set aside"
    return list(examples), f"none of the rows that unlearn set aside are in {source}: all {len(examples)} are taken as unseen"


def _seed(settings: CalibrateSettings, manifest: Mapping[str, Any]) -> int:
    """The seed given, else that of `unlearn`: the validation rows that chose its checkpoint then never set the threshold."""
    return int(manifest.get("settings", {}).get("seed") or 0) if settings.seed is None else settings.seed


def _excludes_padded_rows(manifest: Mapping[str, Any]) -> bool:
    """Whether the model was trained on energies without the vocabulary rows that the tokenizer lacks."""
    return bool(manifest.get("settings", {}).get("exclude_padded_rows"))


def _key(settings: CalibrateSettings, folder: Path, retain: Sequence[Example], forget: Sequence[Example] | None) -> str:
    rows = [[content_hash(example) for example in examples] for examples in (retain, forget or ())]
    return fingerprint([__version__, weights_hash(folder), rows, identity(settings)])
