"""What audits say: TOFU forget10 by several methods, and the quickstart's world; the runs behind docs/results.md.

    python experiments/audit_results.py --shared ../shared                     resumable; hours on two cores
    python experiments/audit_results.py --shared ../shared --runs eua-0 npo --level quick
    python experiments/audit_results.py --shared ../shared --attacks relearning storage      these alone; kept for the whole

Each run unlearns (EUA as `unlearn` does it by default; the others with the parameters that the comparison tuned, seed 0),
calibrates a gate and audits, beside the original and the model that never knew. Where a gate cannot be calibrated the audit is
of the weights alone. What is kept: benchmarks/results/audit/LEVEL/NAME.json, without texts.
"""

from __future__ import annotations

import argparse
import os
import shutil
from dataclasses import replace
from pathlib import Path

from d2unlearn.audit.run import run_audit
from d2unlearn.config import AuditSettings, CalibrateSettings, UnlearnSettings
from d2unlearn.errors import GateError
from d2unlearn.gate.run import run_calibrate
from d2unlearn.runtime import read_json, say
from d2unlearn.schema import GATE_FILE
from d2unlearn.training.unlearn import run_unlearn
from tofu_results import MODELS, write_sets

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "audit"
TUNED = ROOT / "benchmarks" / "results" / "comparison" / "forget10"
EUA = {"eua-0": 0, "eua-1": 1, "eua-2": 2}
METHODS = ("npo", "rmu", "simnpo", "gradient_difference", "pdu")
RUNS = (*EUA, *METHODS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder with data/tofu and models/")
    parser.add_argument("--work", type=Path, default=Path("runs/audit"))
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--level", choices=["quick", "thorough", "exhaustive"], default="thorough")
    parser.add_argument("--attacks", nargs="+", default=[], help="default: all")
    arguments = parser.parse_args()
    os.environ.setdefault("D2UNLEARN_CACHE", str(arguments.work / "cache"))
    for name in arguments.runs:
        audited(name, arguments.level, arguments.attacks, arguments.shared, arguments.work)


def audited(name: str, level: str, attacks: list[str], shared: Path, work: Path) -> None:
    """One run, from data to the kept JSON. Done steps are not repeated: each verb sees that its output is there."""
    seed = EUA.get(name, 0)
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
    artifact = run_unlearn(settings if name in EUA else tuned(name, settings))
    calibrated(artifact, settings)
    audit = AuditSettings(
        model=str(artifact),
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
    made = run_audit(replace(audit, **{level: True}))
    (RESULTS / level).mkdir(parents=True, exist_ok=True)
    shutil.copyfile(made, RESULTS / level / f"{name}.json")
    say(f"kept: {RESULTS / level / name}.json")


def tuned(method: str, settings: UnlearnSettings) -> UnlearnSettings:
    """The settings that the comparison trained its test runs with."""
    run = read_json(TUNED / method / "seed-0.json")
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
