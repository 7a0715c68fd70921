"""What audits say: TOFU forget10 by several methods, and the quickstart's world; the runs behind docs/results.md.

    python experiments/audit_results.py --shared ../shared                     resumable; hours on two cores
    python experiments/audit_results.py --shared ../shared --runs eua-0 npo --level quick
    python experiments/audit_results.py --shared ../shared --attacks relearning storage      these alone; kept for the whole
    python experiments/audit_results.py --shared ../shared --level quick --judge-again       nothing is attacked: new rules

Each run unlearns (EUA and deep EUA as `unlearn` does them by default; the others with the parameters that the comparison tuned,
seed 0), calibrates a gate and audits, beside the original and the model that never knew. Where a gate cannot be calibrated the
audit is of the weights alone. The input classifier leaves the weights alone: audited is the original behind it. What is kept:
benchmarks/results/audit/LEVEL/NAME.json, without texts.
"""

from __future__ import annotations

import argparse
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from d2unlearn.audit.judged import judge_again
from d2unlearn.audit.run import run_audit
from d2unlearn.config import AuditSettings, CalibrateSettings, UnlearnSettings
from d2unlearn.errors import GateError
from d2unlearn.gate.run import run_calibrate
from d2unlearn.runtime import read_json, say
from d2unlearn.schema import AUDIT_FILE, GATE_FILE
from d2unlearn.training.unlearn import run_unlearn
from tofu_results import MODELS, write_sets

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "audit"
TUNED = ROOT / "benchmarks" / "results" / "comparison" / "forget10"
EUA = {"eua-0": 0, "eua-1": 1, "eua-2": 2}
DEEP = {"deep_eua-0": 0, "deep_eua-1": 1, "deep_eua-2": 2}
METHODS = ("npo", "rmu", "simnpo", "gradient_difference", "pdu")
GUARD = "input_classifier"
"""The original behind this guard: no weights change."""
RUNS = (*EUA, *DEEP, *METHODS, GUARD)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder with data/tofu and models/")
    parser.add_argument("--work", type=Path, default=Path("runs/audit"))
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--level", choices=["quick", "thorough", "exhaustive"], default="thorough")
    parser.add_argument("--attacks", nargs="+", default=[], help="default: all")
    parser.add_argument("--judge-again", action="store_true", help="what was read before, by the verdict's present rules")
    arguments = parser.parse_args()
    os.environ.setdefault("D2UNLEARN_CACHE", str(arguments.work / "cache"))
    for name in arguments.runs:
        if arguments.judge_again:
            kept(arguments.work / name / arguments.level / AUDIT_FILE, arguments.level, name)
            continue
        audited(name, arguments.level, arguments.attacks, arguments.shared, arguments.work)


def audited(name: str, level: str, attacks: list[str], shared: Path, work: Path) -> None:
    """One run, from data to the kept JSON. Done steps are not repeated: each verb sees that its output is there."""
    seed = {**EUA, **DEEP}.get(name, 0)
    files = write_sets(shared / "data" / "tofu", work / "data" / f"seed-{seed}", seed, None)
    original, oracle = (shared / "models" / folder for folder in MODELS.values())
    settings = UnlearnSettings(
        model=str(original),
        forget=str(files["forget"]),
        retain=str(files["retain_file"]),
        output=str(work / name / "artifact"),
        seed=seed,
        group_size=20,
    )
    audit = AuditSettings(
        model=str(original if name == GUARD else unlearned(name, settings)),
        original=str(original),
        oracle=str(oracle),
        forget=str(files["forget"]),
        retain=str(files["retain"]),
        paraphrased=str(files["forget_paraphrased"]),
        output=str(work / name / "-".join([level, *attacks])),
        attack=attacks,
        label=name,
        group_size=20,
        redact=True,
    )
    if name == GUARD:
        audit = replace(audit, guard=GUARD, guard_retain=settings.retain, guard_parameters=chosen(GUARD)["parameters"])
    made = run_audit(replace(audit, **{level: True}))
    kept(made, level, name)


def kept(made: Path, level: str, name: str) -> None:
    """The record at `made`, judged by the present rules, among the results; nothing where that audit was not made here."""
    if not made.is_file():
        say(f"{made} is not there: {name} was not audited at this level")
        return
    judge_again(made)
    (RESULTS / level).mkdir(parents=True, exist_ok=True)
    shutil.copyfile(made, RESULTS / level / f"{name}.json")
    say(f"kept: {RESULTS / level / name}.json")


def unlearned(name: str, settings: UnlearnSettings) -> Path:
    """The artifact of a run, with a gate where it can have one."""
    if name in DEEP:
        settings = replace(settings, method="deep_eua")
    artifact = run_unlearn(settings if name in EUA or name in DEEP else tuned(name, settings))
    calibrated(artifact, settings)
    return artifact


def chosen(entry: str) -> dict[str, Any]:
    """What the comparison keeps of its first test run with an entry: the parameters that tuning chose, the learning rate."""
    found: dict[str, Any] = read_json(TUNED / entry / "seed-0.json")
    return found


def tuned(method: str, settings: UnlearnSettings) -> UnlearnSettings:
    """The settings that the comparison trained its test runs with."""
    run = chosen(method)
    parameters = {key: value for key, value in run["parameters"].items() if key != "learning_rate_factor"}
    return replace(
        settings,
        method=method,
        method_parameters=parameters,
        learning_rate=run["learning_rate"],
        epochs=5,
        keep="last",
    )


def calibrated(artifact: Path, settings: UnlearnSettings) -> None:
    """Give the artifact a gate where it has none and can have one."""
    if (artifact / GATE_FILE).is_file():
        return
    try:
        for line in run_calibrate(
            CalibrateSettings(
                model=str(artifact),
                retain=settings.retain,
                forget=settings.forget,
                seed=settings.seed,
                group_size=settings.group_size,
            )
        ):
            say(line)
    except GateError as error:
        say(f"no gate: {error}")


if __name__ == "__main__":
    main()
