"""The TOFU suite on three models: the runs behind the suite's tables in docs/results.md and docs/evaluation.md.

    python experiments/tofu_results.py --shared ../shared --seeds 0   makes the model that was unlearned, under runs/tofu
    python experiments/tofu_benchmark.py --shared ../shared           resumable; a few minutes on one core
    make docs                                                         rewrites the pages

Each run is `d2unlearn evaluate --benchmark tofu` on forget10, in both conventions: first the oracle, whose logs the others are
held against, then the original and the unlearned model. What was found is kept as
`benchmarks/results/tofu-benchmark/MODEL-CONVENTION.json`; the pages are made from those files alone.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from d2unlearn.benchmark.conventions import CONVENTIONS
from d2unlearn.models import weights_hash
from d2unlearn.runtime import atomic_write
from d2unlearn.schema import EVALUATION_FILE, Evaluation, MetricResult
from d2unlearn.serialization import read_evaluation
from tofu_results import MODELS, verbose_call

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "tofu-benchmark"
ORACLE = "oracle"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder with data/tofu and models/")
    parser.add_argument("--artifact", type=Path, default=Path("runs/tofu/full/seed-0/artifact"), help="the unlearned model")
    parser.add_argument("--work", type=Path, default=Path("runs/tofu-benchmark"), help="where the whole results go")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the kept results go")
    arguments = parser.parse_args()
    models = models_of(arguments.shared, arguments.artifact)
    for convention in CONVENTIONS:
        for name, model in models.items():
            output = arguments.work / f"{name}-{convention}"
            verbose_call("evaluate", options(name, model, models[ORACLE], arguments, convention))
            kept = {"weights": weights_hash(model), **facts(read_evaluation(output / EVALUATION_FILE))}
            atomic_write(arguments.output / f"{name}-{convention}.json", compact(kept) + "\n")


def models_of(shared: Path, artifact: Path) -> dict[str, Path]:
    """The models by name, the oracle first: the others need its logs."""
    return {**{name: shared / "models" / MODELS[name] for name in (ORACLE, "original")}, "unlearned": artifact}


def options(name: str, model: Path, oracle: Path, arguments: argparse.Namespace, convention: str) -> list[Any]:
    """Of `d2unlearn evaluate` for one run."""
    given = ["--model", model, "--label", name, "--output", arguments.work / f"{name}-{convention}", "--convention", convention]
    given += ["--benchmark", "tofu", "--forget-split", "forget10", "--data", arguments.shared / "data" / "tofu"]
    given += ["--reference-model", oracle]
    logs = arguments.work / f"{ORACLE}-{convention}" / "TOFU_EVAL.json"
    return given if name == ORACLE else [*given, "--retain-logs", logs]


def facts(result: Evaluation) -> dict[str, Any]:
    """What the pages show of a result."""
    return {
        "convention": result.convention,
        "gate": None
        if result.threshold is None
        else {"score": result.score_name, "threshold": result.threshold, "max_false_refusal": result.max_false_refusal},
        "suite": {metric.name: number(metric) for metric in result.suite},
        "sets": {
            each.name: {
                "kind": each.kind,
                "n": len(each.examples),
                "metrics": {metric.name: number(metric) for metric in each.metrics},
            }
            for each in result.sets
        },
        "warnings": list(result.warnings),
    }


def number(metric: MetricResult) -> dict[str, Any]:
    """A metric with all that belongs to it; null for what has no number."""
    values = {name: getattr(metric, name) for name in ("value", "low", "high")}
    found = {name: None if math.isnan(value) else value for name, value in values.items()}
    found |= {"n": metric.n, "unscored": metric.unscored, "better": metric.better}
    return {**found, "reason": metric.reason} if metric.reason else found


def compact(value: dict[str, Any], indent: str = "") -> str:
    """JSON with one line for what holds no further object: a metric a line."""
    if not any(isinstance(each, dict) for each in value.values()):
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    inner = [
        f"{indent} {json.dumps(key)}: {compact(each, indent + ' ') if isinstance(each, dict) else json.dumps(each)}"
        for key, each in value.items()
    ]
    return "{\n" + ",\n".join(inner) + f"\n{indent}}}"


if __name__ == "__main__":
    main()
