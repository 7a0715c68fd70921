"""What is done to the files in `data/`: the commands, and what is read off their results. Only command lines, public
names, JSON and pages.

All paths are relative: a test works in a copy of `data/`, so that nothing here says where that was.
"""

from __future__ import annotations

import html
import json
import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

from transformers import Trainer

from cli.command import Ran, d2
from d2unlearn import EnergyGate, GuardedModel

DATA = Path(__file__).parent / "data"
COMMIT = "458597f"
"""Where all of it was recorded."""

METHODS = {"eua": (), "npo": (), "rmu": (), "pdu": ("--set", "dual_warmup_epochs=1")}
"""Energies and margins; likelihoods of a reference; hidden states of a few trained layers; weights that adapt on the way."""
ROWS = ("--retain", "retain.jsonl", "--forget", "forget.jsonl")
PACE = ("--batch-size", 4, "--accumulation", 2, "--epochs", 4, "--learning-rate", 3e-3)
GATE = ("--max-false-refusal", 0.05, "--max-new-tokens", 6, "--refusal", "he was")

UNLEARN = ("unlearn", "--model", "model", *ROWS, "--output", "artifact", "--batch-size", 8, "--accumulation", 1)
UNLEARN += ("--epochs", 8, "--learning-rate", 5e-3, "--set", "gamma=0.5")
CALIBRATE = ("calibrate", "--model", "artifact", *ROWS, *GATE)
TESTED = ("--forget", "forget.jsonl", "--retain", "test.jsonl", "--max-new-tokens", 6)
COMPARE = ("compare", "--config", "comparison.yaml")
REPORT = ("report", "--before", "evaluation/before", "--after", "evaluation/after", "--artifact", "artifact")


def evaluate(side: str, output: str) -> tuple[object, ...]:
    """The command that evaluates the model before, or the artifact after."""
    return ("evaluate", "--model", {"before": "model", "after": "artifact"}[side], *TESTED, "--output", output)


def well(*argv: object) -> Ran:
    """A command that ends well."""
    ran = d2(*argv)
    assert ran.code == 0, ran
    return ran


def json_of(path: str | Path) -> Any:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def lines_of(path: str | Path) -> list[Any]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def trajectory(method: str) -> dict[str, Any]:
    """A short run in the folder we are in, and its gate: loss of every batch, energies of every epoch, threshold and scores."""
    output, losses, logged = f"run-{method}", list[float](), list[dict[str, float]]()
    step, log = Trainer.training_step, Trainer.log

    def stepped(trainer: Trainer, *args: Any, **kwargs: Any) -> Any:
        loss = step(trainer, *args, **kwargs)
        losses.append(float(loss))
        return loss

    def noted(trainer: Trainer, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            logged.append(dict(logs))
        log(trainer, logs, *args, **kwargs)

    with patch.object(Trainer, "training_step", stepped), patch.object(Trainer, "log", noted):
        well("unlearn", "--model", "model", *ROWS, "--output", output, "--method", method, *METHODS[method], *PACE)
    well("calibrate", "--model", output, *ROWS, *GATE)
    training, gate = json_of(f"{output}/d2_manifest.json")["training"], json_of(f"{output}/d2_gate.json")
    return {
        "losses": losses,
        "logged": logged,
        "training": {key: training[key] for key in ("steps", "kept_checkpoint", "before", "history")},
        "gate": {key: gate[key] for key in ("score_name", "n_calibration", "threshold", "retain_scores", "forget_scores")},
    }


def gate() -> dict[str, Any]:
    """What the old artifact's gate says of itself."""
    found = EnergyGate.from_pretrained("artifact")
    names = ("score_name", "threshold", "max_false_refusal", "confidence", "n_calibration", "max_new_tokens", "guarantee")
    return {**{name: getattr(found, name) for name in names}, "refusal_texts": list(found.refusal_texts)}


def answered() -> list[dict[str, Any]]:
    """The old artifact's answers to the questions, by the library."""
    asked = [row["prompt"] for row in lines_of("questions.jsonl")]
    return [asdict(answer) for answer in GuardedModel.from_pretrained("artifact").answer(asked)]


def generated() -> list[Any]:
    """The old artifact's answers to the questions, by the command."""
    well("generate", "--model", "artifact", "--input", "questions.jsonl", "--output", "answers.jsonl")
    return lines_of("answers.jsonl")


def reported() -> list[str]:
    """The cells of the page that is drawn of the old evaluations."""
    well(*REPORT, "--output", "report.html")
    return cells("report.html")


def compared() -> dict[str, list[str]]:
    """The cells of the old comparison's pages, drawn again: the first one and a method's."""
    well(*COMPARE)
    return {name: cells(f"comparison/pages/{name}") for name in ("index.html", "cities/eua/seed-0.html")}


def cells(page: str | Path) -> list[str]:
    """What stands in the cells of a page's tables."""
    found = re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", Path(page).read_text(encoding="utf-8"), re.DOTALL)
    return [" ".join(html.unescape(re.sub(r"<[^>]+>", " ", cell)).split()) for cell in found]


def differing(found: Any, expected: Any, *, rel: float, place: str = "") -> list[str]:
    """Where two values of JSON differ: floats by more than `rel` of the expected, all else at all."""
    if isinstance(expected, dict) and isinstance(found, dict) and list(found) == list(expected):
        return [line for key in expected for line in differing(found[key], expected[key], rel=rel, place=f"{place}.{key}")]
    if isinstance(expected, list) and isinstance(found, list) and len(found) == len(expected):
        pairs = enumerate(zip(found, expected, strict=True))
        return [line for i, (one, other) in pairs for line in differing(one, other, rel=rel, place=f"{place}[{i}]")]
    if type(found) is type(expected) is float:
        return [] if math.isclose(found, expected, rel_tol=rel, abs_tol=rel / 100) else [f"{place}: {found} not {expected}"]
    return [] if type(found) is type(expected) and found == expected else [f"{place}: {found!r} not {expected!r}"]
