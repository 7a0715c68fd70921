"""The pipeline on TOFU forget10, judged against the model that never knew: the runs behind docs/results.md.

    python experiments/tofu_results.py --shared ../shared --seeds 0 1 2        resumable; about ten minutes a seed on one core
    python experiments/tofu_results.py --shared ../shared --variant lora       or deep_eua, or qwen2 (a second family)
    make docs                                                              rewrites docs/results.md

Each run is the command line's own verbs, timed: `unlearn`, `calibrate`, `evaluate`. 400 retained rows, drawn by the seed, are
taken out of the retain file first: neither unlearning nor calibration ever sees them, and the gate is judged on them. What a
run measured is kept as `benchmarks/results/tofu/VARIANT-seed-N.json`; the page is made from those files alone.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from d2unlearn.runtime import read_json
from d2unlearn.schema import EVALUATION_FILE, GATE_FILE, MANIFEST_FILE, Evaluation, MetricResult
from d2unlearn.serialization import read_evaluation
from score_trial import trial_of_scores
from second_family import RETAINED, read_rows, train_pair

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "tofu"
TEST_ROWS = 400
SECOND_FAMILY = "qwen2"
VARIANTS = {"full": [], "deep_eua": ["--method", "deep_eua"], "lora": ["--lora"], SECOND_FAMILY: []}
MODELS = {"original": "tofu-4m-full", "oracle": "tofu-4m-retain90"}
ANSWERS = {"real_authors": "real_authors_perturbed", "world_facts": "world_facts_perturbed"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder with data/tofu and models/")
    parser.add_argument("--work", type=Path, default=Path("runs/tofu"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variant", choices=VARIANTS, default="full")
    parser.add_argument("--busy", action="store_true", help="other work goes on here: keep no times")
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        run_seed(arguments.shared, arguments.work / arguments.variant / f"seed-{seed}", arguments.variant, seed, arguments.busy)


def run_seed(shared: Path, work: Path, variant: str, seed: int, busy: bool) -> None:
    """One seed, from data to the kept JSON. Done steps are not repeated: each verb sees that its output is there."""
    files = write_sets(shared / "data" / "tofu", work / "data", seed, RETAINED if variant == SECOND_FAMILY else None)
    models = models_of(shared, work.parent / "models", variant)
    artifact = work / "artifact"
    seconds = read_json(work / "seconds.json") if (work / "seconds.json").is_file() else {}
    data = ["--forget", files["forget"], "--retain", files["retain_file"], "--group-size", "20"]
    steps = {
        "unlearn": ["--model", models["original"], *data, "--output", artifact, "--seed", seed, *VARIANTS[variant]],
        "calibrate": ["--model", artifact, *data, "--seed", seed],
    }
    for verb, options in steps.items():
        if verb not in seconds:
            seconds[verb] = verbose_call(verb, options)
            (work / "seconds.json").write_text(json.dumps(seconds))
    evaluations = {
        name: evaluated(model, files, work / f"evaluation-{name}") for name, model in (*models.items(), ("unlearned", artifact))
    }
    kept = {
        "variant": variant,
        "seed": seed,
        "hardware": "2-core x86-64 CPU, float32",
        "seconds": None if busy else {verb: round(value, 1) for verb, value in seconds.items()},
        "gate": gate_facts(artifact),
        **{key: read_json(artifact / MANIFEST_FILE)[key] for key in ("learning_rate", "accumulation")},
        "evaluations": {name: measured(each) for name, each in evaluations.items()},
        "scores": trial_of_scores(artifact, files),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{variant}-seed-{seed}.json").write_text(json.dumps(kept, indent=1) + "\n")


def write_sets(tofu: Path, folder: Path, seed: int, retained: int | None) -> dict[str, Path]:
    """The files of one seed: retain rows without the test rows, and every set that models are evaluated on."""
    retain = read_rows(tofu / "retain90.jsonl")[:retained]
    for index, row in enumerate(retain):
        row["group"] = f"author-{index // 20}"
    test = set(random.Random(seed).sample(range(len(retain)), TEST_ROWS))
    rest = [row for index, row in enumerate(retain) if index not in test]
    sets = {
        "forget": read_rows(tofu / "forget10.jsonl"),
        "retain_file": rest,
        "retain": [retain[index] for index in sorted(test)],
        "retain_seen": random.Random(seed).sample(rest, TEST_ROWS),
        "forget_paraphrased": paraphrased(tofu / "forget10_perturbed.jsonl"),
        "retain_paraphrased": paraphrased(tofu / "retain_perturbed.jsonl"),
        **{name: plain(tofu / f"{split}.jsonl") for name, split in ANSWERS.items()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, rows in sets.items():
        paths[name] = folder / f"{name}.jsonl"
        paths[name].write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return paths


def plain(path: Path) -> list[dict[str, Any]]:
    return [{"question": row["question"], "answer": row["answer"]} for row in read_rows(path)]


def paraphrased(path: Path) -> list[dict[str, Any]]:
    return [{"question": row["paraphrased_question"], "answer": row["answer"]} for row in read_rows(path)]


def models_of(shared: Path, trained: Path, variant: str) -> dict[str, Path]:
    """The model to unlearn and the one that never knew; those of the second family are trained here, once."""
    if variant == SECOND_FAMILY:
        return train_pair(shared, trained)
    return {name: shared / "models" / folder for name, folder in MODELS.items()}


def verbose_call(verb: str, options: list[Any]) -> float:
    """Run a verb of the command line; its seconds."""
    command = [sys.executable, "-m", "d2unlearn.cli.main", verb, *map(str, options)]
    print("$ d2unlearn", *command[3:], flush=True)
    started = time.monotonic()
    subprocess.run(command, check=True)
    return time.monotonic() - started


def evaluated(model: Path, files: dict[str, Path], output: Path) -> Evaluation:
    also = [f"--also-forget=forget_paraphrased={files['forget_paraphrased']}"]
    for name in ("retain_seen", "retain_paraphrased", *ANSWERS):
        also.append(f"--also-retain={name}={files[name]}")
    options = ["--model", model, "--forget", files["forget"], "--retain", files["retain"], "--output", output, *also]
    verbose_call("evaluate", [*options, "--group-size", "20"])
    return read_evaluation(output / EVALUATION_FILE)


def measured(evaluation: Evaluation) -> dict[str, Any]:
    """Every metric of every set, and the separations, as plain numbers."""
    return {
        "sets": {result.name: {"n": len(result.examples), **intervals(result.metrics)} for result in evaluation.sets},
        "separation": intervals(evaluation.separation),
    }


def intervals(metrics: Sequence[MetricResult]) -> dict[str, list[float]]:
    return {metric.name: [metric.value, metric.low, metric.high] for metric in metrics if metric.n}


def gate_facts(artifact: Path) -> dict[str, Any]:
    """What the gate's file says of its calibration, for the page."""
    gate = read_json(artifact / GATE_FILE)
    names = (
        "score_name",
        "threshold",
        "max_false_refusal",
        "confidence",
        "n_calibration",
        "guarantee",
        "miss_rate",
        "measured",
    )
    return {name: gate[name] for name in names if name in gate}


if __name__ == "__main__":
    main()
