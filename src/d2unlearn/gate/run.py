"""`calibrate` from settings to `d2_gate.json` in the artifact, and the lines that say what was found."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from d2unlearn.artifact import DONE, read_manifest
from d2unlearn.artifact import manifest as new_manifest
from d2unlearn.config import CalibrateSettings, identity, system_message
from d2unlearn.data.holdout import hold_out
from d2unlearn.data.identity import is_among
from d2unlearn.data.records import content_hash, read_examples, source_names
from d2unlearn.errors import ArtifactError, GateError
from d2unlearn.gate.asked import asked_scores, with_leads
from d2unlearn.gate.export import is_carried
from d2unlearn.gate.gate import EnergyGate
from d2unlearn.gate.gated import GateWarning
from d2unlearn.gate.measuring import CalibrationRows, GateReading, checked_rows
from d2unlearn.gate.renderings import renderings
from d2unlearn.gate.traffic import read_traffic, traffic_lines
from d2unlearn.loaded_files import check_self_contained
from d2unlearn.models import load_model, load_tokenizer, weights_hash
from d2unlearn.runtime import check_writable, fingerprint, now, read_json, write_json
from d2unlearn.schema import GATE_FILE, MANIFEST_FILE, Example
from d2unlearn.version import __version__
from d2unlearn.wordings.table import training_wordings


def run_calibrate(settings: CalibrateSettings) -> Iterator[str]:
    """Calibrate, write the gate into the model's folder, and yield lines for a person."""
    folder = Path(settings.model)
    if not folder.is_dir():
        raise GateError(f"{settings.model} is not a folder: the gate is written beside the weights it belongs to")
    check_writable(folder / GATE_FILE)
    check_self_contained(folder)
    manifest = read_manifest(folder) or {}
    seed = _seed(settings, manifest)
    settings = replace(settings, seed=seed)
    given = _rows(settings, manifest)
    key = _key(settings, folder, given)
    if manifest.get("calibration", {}).get("key") == key and _has_gate(folder):
        if not is_carried(folder):
            EnergyGate.from_pretrained(folder).save(folder)
        yield DONE.format(folder / GATE_FILE)
        return
    yield from _replaced(folder, manifest, len(given.rows.forget), settings)
    yield given.note
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    vocab_rows = len(tokenizer) if _excludes_padded_rows(manifest) else None
    gate = EnergyGate.calibrate(
        model,
        tokenizer,
        given.rows.retain,
        given.rows.forget,
        near=given.rows.near,
        unrelated=given.rows.unrelated,
        wordings=training_wordings() if settings.wordings else (),
        of_each=settings.wordings,
        max_false_refusal=settings.max_false_refusal,
        confidence=settings.confidence,
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.batch_size,
        refusal_texts=settings.refusal or None,
        score=settings.score,
        vocab_rows=vocab_rows,
        seed=seed,
        folder=folder,
        vouched=given.vouched,
        system=system_message(settings.system),
    )
    answering = GateReading(model, tokenizer, gate.max_new_tokens, settings.batch_size, 1.0, vocab_rows, gate.system)
    seen = _traffic_lines(gate, answering, given.traffic)
    gate.save(folder)
    rows = {name: len(each) for name, each in given.rows._asdict().items()}
    section = {"key": key, "made": now(), "rows": rows, "settings": asdict(settings), "version": __version__}
    write_json(folder / MANIFEST_FILE, {**(manifest or new_manifest("calibrate", key)), "calibration": section})
    yield from gate.describe()
    yield from seen
    yield f"{folder / GATE_FILE}"


@dataclass(frozen=True)
class _Given:
    """What the settings name: rows, whether only the user vouches for those retained, a line that says which these are."""

    rows: CalibrationRows
    traffic: list[Example]
    vouched: bool
    note: str


def _rows(settings: CalibrateSettings, manifest: Mapping[str, Any]) -> _Given:
    read = partial(read_examples, group_size=settings.group_size, columns=settings.columns)
    retain, vouched, note = _unseen(read(settings.retain), manifest, settings)
    forget, near, unrelated = (
        [] if each is None else read(each) for each in (settings.forget, settings.near, settings.unrelated)
    )
    traffic = [] if settings.traffic is None else read_traffic(Path(settings.traffic))
    return _Given(checked_rows(CalibrationRows(retain, forget, near, unrelated)), traffic, vouched, note)


def _replaced(folder: Path, manifest: Mapping[str, Any], n_forget: int, settings: CalibrateSettings) -> Iterator[str]:
    """A line about the gate that will be replaced, if there is one, whatever its state.

    Raises `GateError` where that one was shown more forget rows and nobody asked for it.
    """
    path = folder / GATE_FILE
    if not path.is_file():
        return
    had = max(_forget_rows_of(path), int(manifest.get("calibration", {}).get("rows", {}).get("forget", 0)))
    if had > n_forget and not settings.replace:
        raise GateError(
            f"{path} was made with {had} forget rows, and {n_forget or 'none'} are given now: the new gate would not know what "
            "the others look like; give --forget all of them, or --replace it all the same"
        )
    yield f"{path} is made anew: the gate that was there knew {had} forget rows, this one is shown {n_forget}"


def _forget_rows_of(path: Path) -> int:
    """By what a gate's file says, though it cannot be used; 0 where it says nothing."""
    with suppress(ArtifactError):
        scores = read_json(path).get("forget_scores")
        return len(scores) if isinstance(scores, list) else 0
    return 0


def _traffic_lines(gate: EnergyGate, answering: GateReading, traffic: Sequence[Example]) -> list[str]:
    """What is said of real prompts, once there is a gate to look at them."""
    if not traffic:
        return []
    asked = answering.asked(renderings(traffic, system=gate.system), "traffic", gate.score)
    leads = {group.group: group.lead for group in gate.calibration.groups}
    scores = with_leads(asked, asked_scores(gate.score, asked), leads)
    return list(traffic_lines(traffic, scores, gate.threshold, gate.max_false_refusal, gate.confidence))


def _has_gate(folder: Path) -> bool:
    """Whether there is a gate that can be used, is bound to all that decides, and looks at sentences: not one of before 0.3."""
    gate = _gate_there(folder)
    return gate is not None and bool(gate.bound) and gate.sentences


def _gate_there(folder: Path) -> EnergyGate | None:
    """The folder's gate; None where there is none that can be used: it was cut short, edited, or is of other weights."""
    try:
        with warnings.catch_warnings(action="ignore", category=GateWarning):
            return EnergyGate.from_pretrained(folder)
    except GateError:
        return None


def _unseen(
    examples: Sequence[Example], manifest: Mapping[str, Any], settings: CalibrateSettings
) -> tuple[list[Example], bool, str]:
    """(the rows to calibrate on, whether only the user vouches that nothing was trained on them, a line that says which).

    Shown to be unseen are the rows that the manifest lists as set aside. Raises `GateError` where there is none and nobody
    vouches, and for rows vouched for that are those that `unlearn` divided.
    """
    source, keys = source_names(settings.retain), set(manifest.get("held_out", ()))
    chosen = [example for example in examples if is_among(example, keys)]
    if chosen and (not settings.unseen or len(chosen) == len(examples)):
        return chosen, False, f"{len(chosen)} rows of {source} that unlearn set aside"
    if not settings.unseen:
        why = (
            f"none of the rows that unlearn set aside are in {source}"
            if "held_out" in manifest
            else f"{settings.model} has no manifest of unlearn that says which rows it set aside"
        )
        raise GateError(
            f"{why}: nothing shows that the model was not trained on its rows, and a guarantee holds for unseen rows alone; "
            "give the retain file that unlearn had, or vouch for these rows with --unseen (the gate will say so)"
        )
    if chosen and all(is_among(row, keys) for row in hold_out(examples, seed=_unlearn_seed(manifest)).held_out):
        raise GateError(f"{source} is the file that unlearn trained on: leave --unseen out, and the rows set aside are used")
    return list(examples), True, f"all {len(examples)} rows of {source}, which you vouch for as unseen (--unseen)"


def _seed(settings: CalibrateSettings, manifest: Mapping[str, Any]) -> int:
    """The seed given, else that of `unlearn`: the validation rows that chose its checkpoint then never set the threshold."""
    return _unlearn_seed(manifest) if settings.seed is None else settings.seed


def _unlearn_seed(manifest: Mapping[str, Any]) -> int:
    return int(manifest.get("settings", {}).get("seed") or 0)


def _excludes_padded_rows(manifest: Mapping[str, Any]) -> bool:
    """Whether the model was trained on energies without the vocabulary rows that the tokenizer lacks."""
    return bool(manifest.get("settings", {}).get("exclude_padded_rows"))


def _key(settings: CalibrateSettings, folder: Path, given: _Given) -> str:
    rows = [[content_hash(example) for example in examples] for examples in (*given.rows, given.traffic)]
    return fingerprint([__version__, weights_hash(folder), rows, identity(settings), *(["vouched"] if given.vouched else [])])
