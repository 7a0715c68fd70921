"""A gate as it was beside one calibrated anew, on wordings that neither was calibrated in: refusals, misses, leaks by family.

What is compared is asked once, of the same weights. Counted are requests that the original model answers rightly: forgotten
ones should be refused, legitimate ones (unseen rows, and rows of nothing related) not. `before` looks at the whole request
alone, `after` at each of its turns and sentences, too, as the gate does by now.

Usage: python experiments/gate_results.py ARTIFACT DATA OUTPUT.json [--judging] [--rows N] [--group-size N]
ARTIFACT holds the gate as it was, and is left alone. DATA: forget.jsonl, legitimate rows and the retain file, as NAMES says.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from d2unlearn.audit.judging import judging_wordings
from d2unlearn.config import CalibrateSettings
from d2unlearn.data.records import read_examples
from d2unlearn.gate.asked import PLAIN_FAMILY, AskedRequest, asked_scores, with_leads
from d2unlearn.gate.gate import EnergyGate
from d2unlearn.gate.measuring import GateReading
from d2unlearn.gate.renderings import renderings
from d2unlearn.gate.run import run_calibrate
from d2unlearn.gate.score import Score
from d2unlearn.models import load_model, load_tokenizer
from d2unlearn.refusals import GATE_REFUSALS
from d2unlearn.runtime import read_json, write_json
from d2unlearn.schema import MANIFEST_FILE, Example
from d2unlearn.stats import binomial_interval
from d2unlearn.wordings.table import choosing_wordings
from d2unlearn.wordings.wording import Material, Wording

NAMES = {"tofu": ("retain_file", "retain", "world_facts"), "quickstart": ("retain", "retain_test", "general")}
"""The retain file, unseen rows of the same kind, rows of nothing related."""


def asked_in(
    artifact: Path, sets: dict[str, list[Example]], wordings: Sequence[Wording], material: Material, score: Score
) -> dict[tuple[str, str], list[AskedRequest]]:
    """For each set and each wording (and the rows as they stand) what was read of answers; of turns what the score looks at."""
    answering = GateReading(load_model(artifact).eval(), load_tokenizer(artifact), 48, 32, 1.0, None)
    found = {}
    for name, rows in sets.items():
        refusal = GATE_REFUSALS[0] if name == "forget" else None
        found[name, PLAIN_FAMILY] = answering.asked(renderings(rows), name, score)
        for wording in wordings:
            made = [each for each in renderings(rows, [wording], material, refusal=refusal) if each.family != PLAIN_FAMILY]
            if made:
                found[name, wording.name] = answering.asked(made, name, score)
    return found


def judged(gate: EnergyGate, asked: Sequence[AskedRequest], known: Sequence[AskedRequest], whole_alone: bool) -> dict[str, Any]:
    """Refused, and passed with the truth in the answer, of questions that the original answers rightly, and of all."""
    looks = [replace(each, looks=each.looks[:1]) for each in asked] if whole_alone else list(asked)
    leads = {group.group: group.lead for group in gate.calibration.groups}
    refused = (with_leads(looks, asked_scores(gate.score, looks), leads) > gate.threshold).tolist()
    right = {each.question for each in known if each.told}
    shown = [(no, each) for no, each in zip(refused, asked, strict=True) if each.question in right]
    return {
        "n": len(shown),
        "refused": sum(no for no, _ in shown),
        "leaked": sum(bool(each.told) and not no for no, each in shown),
        "n_all": len(asked),
        "refused_all": sum(refused),
        "leaked_all": sum(bool(each.told) and not no for no, each in zip(refused, asked, strict=True)),
    }


def summed(name: str, rows: dict[str, dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Over wordings: requests of one set that the original answers rightly, and the mean over wordings with at least five."""
    of_set = [each[name] for each in rows.values() if name in each]
    n, refused = sum(each["n"] for each in of_set), sum(each["refused"] for each in of_set)
    shares = [each["refused"] / each["n"] for each in of_set if each["n"] >= 5]
    return {
        "requests": n,
        "refused": list(binomial_interval(refused, n)) if n else None,
        "mean_over_wordings": sum(shares) / len(shares) if shares else None,
        "lowest": min(shares, default=None),
        "highest": max(shares, default=None),
        "wordings": len(shares),
        "leaked_all": sum(each["leaked_all"] for each in of_set),
        "asked_all": sum(each["n_all"] for each in of_set),
        "refused_all": sum(each["refused_all"] for each in of_set),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("artifact", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--kind", choices=list(NAMES), default="tofu")
    parser.add_argument("--judging", action="store_true")
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--group-size", type=int)
    given = parser.parse_args()
    torch.set_num_threads(1)
    retain_file, unseen, unrelated = (given.data / f"{name}.jsonl" for name in NAMES[given.kind])
    wordings = judging_wordings() if given.judging else choosing_wordings()
    with tempfile.TemporaryDirectory() as folder:
        anew = Path(folder) / "artifact"
        shutil.copytree(given.artifact, anew)
        started = time.process_time()
        settings = CalibrateSettings(
            str(anew), str(retain_file), str(given.data / "forget.jsonl"), group_size=given.group_size, replace=True
        )
        said = [line.replace(folder, "") for line in run_calibrate(settings)]
        seconds = time.process_time() - started
        gates = {"before": EnergyGate.from_pretrained(given.artifact), "after": EnergyGate.from_pretrained(anew)}
    print("\n".join(said), f"{seconds:.0f} s")
    files = {"forget": given.data / "forget.jsonl", "unseen": unseen, "unrelated": unrelated}
    read = {name: read_examples(file, group_size=given.group_size) for name, file in files.items()}
    sets = {name: random.Random(0).sample(rows, min(given.rows, len(rows))) for name, rows in read.items()}
    pairs = [row for row in read["unseen"] if row not in sets["unseen"]]
    material = Material(pairs, read["forget"])
    original = Path(read_json(given.artifact / MANIFEST_FILE)["settings"]["model"])
    score = gates["after"].score
    found, known = (asked_in(folder, sets, wordings, material, score) for folder in (given.artifact, original))
    tables: dict[str, dict[str, dict[str, dict[str, Any]]]] = {"before": {}, "after": {}}
    for (name, wording), asked in found.items():
        for when, gate in gates.items():
            tables[when].setdefault(wording, {})[name] = judged(gate, asked, known[name, wording], when == "before")
    write_json(
        given.output,
        {
            "wordings": "judging" if given.judging else "choosing",
            "rows_of_each_set": {name: len(rows) for name, rows in sets.items()},
            "calibration_cpu_seconds": seconds,
            "score": {when: gate.score_name for when, gate in gates.items()},
            "threshold": {when: gate.threshold for when, gate in gates.items()},
            "said": said,
            "all": {when: {name: summed(name, table) for name in sets} for when, table in tables.items()},
            "by_wording": tables,
        },
    )
    print(given.output)


if __name__ == "__main__":
    main()
