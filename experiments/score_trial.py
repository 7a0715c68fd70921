"""Every score that the gate could have used, on rows that neither unlearning nor calibration saw.

For each of `CANDIDATES` the threshold that calibration would have set, with and without the raise by forget prompts, and what
share of each set would be refused at both. Answers are generated once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from d2unlearn.analysis.thresholds import threshold_at
from d2unlearn.data.holdout import split_validation
from d2unlearn.data.records import content_hash, read_examples
from d2unlearn.data.template import Template
from d2unlearn.gate.calibrate import raised
from d2unlearn.gate.gate import EnergyGate
from d2unlearn.gate.score import CANDIDATES, request_scores
from d2unlearn.gate.traces import collect_traces
from d2unlearn.models import load_model, load_tokenizer
from d2unlearn.runtime import read_json
from d2unlearn.schema import MANIFEST_FILE, Example

JUDGED = ("forget", "forget_paraphrased", "retain", "retain_paraphrased", "real_authors", "world_facts")


def trial_of_scores(artifact: Path, files: Mapping[str, Path]) -> dict[str, Any]:
    """{score: {"conformal" and "middle of the gap": {set: share refused}}}."""
    gate = EnergyGate.from_pretrained(artifact)
    held_out = set(read_json(artifact / MANIFEST_FILE)["held_out"])
    set_aside = [row for row in read_examples(files["retain_file"]) if content_hash(row) in held_out]
    validation, calibration = split_validation(set_aside, seed=gate.seed)
    sets = {"validation": validation, "calibration": calibration} | {name: read_examples(files[name]) for name in JUDGED}
    energies = energies_of(artifact, sets, gate.max_new_tokens)
    found = {}
    for name, candidate in CANDIDATES.items():
        score = candidate.fit(energies["validation"])
        scores = {set_name: request_scores(score, answers) for set_name, answers in energies.items()}
        conformal = threshold_at(scores["calibration"], gate.max_false_refusal)
        retained = np.concatenate([scores["validation"], scores["calibration"]])
        thresholds = {"conformal": conformal, "middle of the gap": raised(conformal, retained, scores["forget"])}
        found[name] = {
            placement: {judged: float((scores[judged] > threshold).mean()) for judged in JUDGED}
            for placement, threshold in thresholds.items()
        }
    return found


def energies_of(artifact: Path, sets: Mapping[str, list[Example]], max_new_tokens: int) -> dict[str, list[tuple[float, ...]]]:
    """Of each set the energies of the greedy answers."""
    model, tokenizer = load_model(artifact), load_tokenizer(artifact)
    template, energies = Template(tokenizer), {}
    for name, rows in sets.items():
        prompts = [template.prompt_ids(row.prompt) for row in rows]
        traces = collect_traces(model, tokenizer, prompts, max_new_tokens=max_new_tokens)
        energies[name] = [trace.energies for trace in traces]
    return energies
