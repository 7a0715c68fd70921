"""The comparison's attacks on weights that were kept: what relearning brings back, and what is told in other words.

    python experiments/comparison_attacks.py --shared ../shared                   resumable; 5 to 15 minutes a model on one core
    python experiments/comparison_attacks.py --shared ../shared --entries npo rmu

The very code that `compare` evaluates with, on its questions of forget10 and with its budgets, but not on its own runs: on the
artifacts that experiments/audit_results.py unlearned (seed 0), beside the original and the retain model. EUA was trained there
as `unlearn` does it by default, the others with the parameters that the comparison's tuning chose. One file an entry:
benchmarks/results/comparison-attacks/forget10/ENTRY/seed-0.json, of which docs/comparison.md makes a table of its own.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import yaml

from d2unlearn.artifact import read_manifest, versions
from d2unlearn.comparison.context import RunContext
from d2unlearn.comparison.cost import machine
from d2unlearn.comparison.evaluating import relearning_results
from d2unlearn.comparison.plan import Comparison, Run, comparison_of
from d2unlearn.comparison.records import NO_COST, ORIGINAL, RETAIN_MODEL, EntryKind, RunResult
from d2unlearn.comparison.rewording import told_reworded
from d2unlearn.comparison.store import Store
from d2unlearn.config import CompareSettings
from d2unlearn.guards import GUARDS
from d2unlearn.methods import METHODS
from d2unlearn.runtime import say

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "comparison-attacks"
SPLIT = "forget10"
METHOD_RUNS = {"eua": "eua-0", "npo": "npo", "rmu": "rmu", "pdu": "pdu"}
"""By entry the folder that experiments/audit_results.py left its artifact in."""
ENTRIES = (*METHOD_RUNS, ORIGINAL, RETAIN_MODEL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder with data/tofu and models/")
    parser.add_argument("--work", type=Path, default=Path("runs/audit"), help="where audit_results.py keeps its artifacts")
    parser.add_argument("--entries", nargs="+", choices=ENTRIES, default=list(ENTRIES))
    arguments = parser.parse_args()
    comparison = forget10(arguments.shared)
    store = Store(arguments.work / "comparison-attacks", RESULTS)
    for entry in arguments.entries:
        kind: EntryKind = "method" if entry in METHOD_RUNS else "as_is"
        context = RunContext(comparison, Run(SPLIT, entry, kind, 0), store)
        folder = str(arguments.work / METHOD_RUNS[entry] / "artifact") if entry in METHOD_RUNS else context.as_is_model
        if not store.is_done(context.run):
            store.keep(attacked(context, folder))
        say(f"kept: {store.path(context.run)}")


def forget10(shared: Path) -> Comparison:
    """The comparison of docs/comparison.md, of its first split and of the questions alone that attacks are made with."""
    settings = yaml.safe_load(Path(__file__).with_name("comparison.yaml").read_text(encoding="utf-8"))
    split = settings["splits"][SPLIT]
    data, models = shared / "data" / "tofu", shared / "models"
    kept = {
        "forget": str(data / Path(split["forget"]).name),
        "retain": str(data / Path(split["retain"]).name),
        "oracle": str(models / Path(split["oracle"]).name),
        "group_size": split["group_size"],
    }
    settings |= {"model": str(models / Path(settings["model"]).name), "splits": {SPLIT: kept}}
    return comparison_of(CompareSettings(**settings), methods=METHODS, guards=GUARDS)


def attacked(context: RunContext, folder: str) -> RunResult:
    """What the attacks find; nothing else is measured."""
    made = read_manifest(Path(folder)) or {}
    found = RunResult(
        key=context.run.key,
        identity=context.identity,
        split=SPLIT,
        contestant=context.run.entry,
        kind=context.run.kind,
        seed=0,
        parameters=made.get("settings", {}).get("method_parameters", {}),
        learning_rate=made.get("learning_rate"),
        sets=(),
        separation=(),
        suite=(),
        score_name=None,
        threshold=None,
        gate_reason="",
        comebacks=(),
        cost=NO_COST,
        machine=machine(),
        versions=versions(),
    )
    return replace(found, reworded=(told_reworded(context, folder),), comebacks=relearning_results(context, folder))


if __name__ == "__main__":
    main()
