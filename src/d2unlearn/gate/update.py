"""More unseen rows for a gate that is there (`calibrate --update`): the same score, and a promise about all rows together.

The threshold stays, which forget rows in other wordings placed, unless it lies below the new conformal value.

The score was chosen and standardised by other rows, so those that set the threshold and the new ones are alike to it: the
guarantee is that of so many rows, about requests like all of them together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from d2unlearn.artifact import DONE, read_manifest
from d2unlearn.artifact import manifest as new_manifest
from d2unlearn.config import CalibrateSettings
from d2unlearn.data.identity import is_among, row_key
from d2unlearn.data.records import read_examples, source_names
from d2unlearn.data.template import Template
from d2unlearn.errors import GateError
from d2unlearn.gate.calibrate import Calibration, raised
from d2unlearn.gate.gate import EnergyGate
from d2unlearn.gate.gated import GatedGenerator
from d2unlearn.gate.rule import RefusalTokens
from d2unlearn.gate.score import request_scores
from d2unlearn.gate.traces import collect_traces
from d2unlearn.gate.traffic import listed_above
from d2unlearn.gate.turns import turns_by_themselves, under_system
from d2unlearn.models import end_token_ids, load_model, load_tokenizer, pad_token_id
from d2unlearn.runtime import fingerprint, write_json
from d2unlearn.schema import GATE_FILE, MANIFEST_FILE, Example
from d2unlearn.stats import Floats, binomial_interval, conformal_rank

UPDATES = "updates"
"""In the manifest's section on calibration: keys of the rows that were added since."""


def updated(calibration: Calibration, scores: Floats, max_false_refusal: float, confidence: float | None) -> Calibration:
    """The calibration with further legitimate requests, [N] scores. Its threshold stays where it keeps the promise, and is else
    raised from the conformal value of all, as in a calibration. Raises `GateError` for what is no number.
    """
    if not np.isfinite(scores).all():
        raise GateError("the model's energies on the new prompts are not finite numbers: the model is broken")
    together = np.concatenate([calibration.calibration_scores, scores])
    rank = conformal_rank(len(together), max_false_refusal, confidence)
    conformal = float(np.sort(together)[rank - 1])
    floor = max([conformal, *(group.conformal for group in calibration.groups if group.conformal is not None)])
    threshold = calibration.threshold
    if threshold < floor:
        threshold = raised(floor, together, np.array(calibration.forget_scores))
    return replace(
        calibration,
        threshold=threshold,
        conformal_threshold=conformal,
        rank=rank,
        calibration_false_refusal=binomial_interval(int((together > threshold).sum()), len(together)),
        calibration_scores=tuple(together.tolist()),
    )


def run_update(settings: CalibrateSettings) -> Iterator[str]:
    """Add the rows to the gate of the folder, and yield lines for a person. Rows that it has had already are left out."""
    folder = Path(settings.model)
    gate = EnergyGate.from_pretrained(folder)
    others = [name for name in ("forget", "near", "unrelated", "traffic") if getattr(settings, name) is not None]
    if others:
        left_out = " and ".join(f"--{name}" for name in others)
        raise GateError(f"--update adds the rows of --retain and leaves the others as they were: leave {left_out} out")
    if not settings.unseen:
        raise GateError(
            "nothing shows that the new rows were not trained on: vouch for them with --unseen (the gate will say so)"
        )
    manifest = read_manifest(folder) or new_manifest("calibrate", fingerprint([gate.fingerprint]))
    section = manifest.get("calibration", {})
    known = {*manifest.get("held_out", ()), *section.get(UPDATES, ())}
    given = read_examples(settings.retain, group_size=settings.group_size, columns=settings.columns)
    rows = list({row_key(row): row for row in given if not is_among(row, known)}.values())
    if not rows:
        yield DONE.format(folder / GATE_FILE)
        return
    yield f"{len(rows)} new rows of {source_names(settings.retain)} ({len(given) - len(rows)} were known), which you vouch for"
    scores = _scores(gate, folder, rows, settings.batch_size)
    before = int((scores > gate.threshold).sum())
    calibration = updated(gate.calibration, scores, gate.max_false_refusal, gate.confidence)
    yield f"{before} of them lie above the threshold that was, {gate.threshold:.4f}; it is now {calibration.threshold:.4f}"
    yield from listed_above(rows, scores, gate.threshold)
    gate = replace(gate, calibration=calibration, vouched=True)
    gate.save(folder)
    updates = [*section.get(UPDATES, ()), *map(row_key, rows)]
    write_json(folder / MANIFEST_FILE, {**manifest, "calibration": {**section, UPDATES: updates}})
    yield f"guarantee: {gate.guarantee}"
    yield f"{folder / GATE_FILE}"


def _scores(gate: EnergyGate, folder: Path, rows: Sequence[Example], batch_size: int) -> Floats:
    """Of each row's prompt, with its answer, or of one of its turns: the highest, with its group's lead."""
    bare = next((row for row in rows if not row.prompt), None)
    if bare is not None:
        raise GateError(f"{bare.source}: a row of plain text has no prompt to judge; give rows with a question")
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    gate.check_probes(model.eval())  # type: ignore[no-untyped-call]
    template = Template(tokenizer)
    asked = [under_system(row.prompt, gate.system) for row in rows]
    prompts = [template.prompt_ids(messages) for messages in asked]
    traces = collect_traces(
        model,
        tokenizer,
        prompts,
        max_new_tokens=gate.max_new_tokens,
        batch_size=batch_size,
        temperature=gate.temperature,
        vocab_rows=gate.vocab_rows,
        description="answers to new prompts",
    )
    whole = request_scores(gate.score, [trace.energies for trace in traces])
    tokens = RefusalTokens((), (), tuple(end_token_ids(model, tokenizer)), pad_token_id(tokenizer))
    turns = [
        [template.prompt_ids(turn) for turn in turns_by_themselves(messages, gate.system, sentences=gate.sentences)]
        for messages in asked
    ]
    budget = batch_size * math.ceil(sum(map(len, prompts)) / len(prompts))
    leads = np.array([gate.lead_of(messages) for messages in asked])
    return np.asarray(np.maximum(whole, GatedGenerator(model, tokens).turn_scores(gate.rule, turns, budget)) + leads)
