"""Energy on trial on TOFU forget10: the analyses behind docs/energy.md.

    python experiments/tofu_results.py --shared ../shared     first: it makes the unlearned models and the sets
    python experiments/energy_trial.py --shared ../shared     minutes a seed; writes benchmarks/results/energy
    make docs                                             rewrites the tables of docs/energy.md

Runs `d2unlearn analyze` on the model that `tofu_results.py` unlearned, beside the original and the one that never knew. Kept
are the statistics; the whole of it, with every request's values and the page of pictures, stays under `runs/`.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from d2unlearn.analysis.page import write_page
from d2unlearn.analysis.records import Analysis, read_analysis
from d2unlearn.analysis.run import run_analyze
from d2unlearn.config import AnalyzeSettings
from d2unlearn.serialization import record_to_json

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "energy"
RETAINED = ("retain_paraphrased", "real_authors", "world_facts")
SETTINGS = ("max_new_tokens", "batch_size", "disturbed", "dtype", "group_size")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder with models/")
    parser.add_argument("--work", type=Path, default=Path("runs"), help="where tofu_results.py worked: WORK/tofu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--limit", type=int, help="rows of each set, to try the script; nothing is kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in options.seeds:
        run_seed(options.shared, options.work, seed, options.limit)


def run_seed(shared: Path, work: Path, seed: int, limit: int | None) -> None:
    """One seed's unlearned model: analysis, page, and what is kept of it."""
    processor, clock = time.process_time(), time.monotonic()
    output = work / "energy" / (f"seed-{seed}" if limit is None else f"seed-{seed}-of-{limit}")
    done = output.exists()
    path = run_analyze(settings_of(shared, work / "tofu" / "full" / f"seed-{seed}", output, seed, limit))
    seconds = {"processor": round(time.process_time() - processor), "clock": round(time.monotonic() - clock)}
    if limit is None and not done:
        keep(seed, seconds, without_requests(read_analysis(path)))
    print(path, write_page(path), sep="\n")


def settings_of(shared: Path, run: Path, output: Path, seed: int, limit: int | None) -> AnalyzeSettings:
    data = run / "data"
    return AnalyzeSettings(
        model=str(run / "artifact"),
        original=str(shared / "models" / "tofu-4m-full"),
        oracle=str(shared / "models" / "tofu-4m-retain90"),
        forget=str(data / "forget.jsonl"),
        retain=str(data / "retain.jsonl"),
        also_forget={"forget_paraphrased": str(data / "forget_paraphrased.jsonl")},
        also_retain={name: str(data / f"{name}.jsonl") for name in RETAINED},
        calibration=str(data / "retain_file.jsonl"),
        output=str(output),
        label=f"EUA, seed {seed}",
        seed=seed,
        limit=limit,
        group_size=20,
    )


def without_requests(analysis: Analysis) -> Analysis:
    """The analysis without single requests' values and answers, and without places on this machine."""
    models = tuple(replace(each, model=each.role, values={}) for each in analysis.models)
    settings = {name: analysis.settings[name] for name in SETTINGS}
    return replace(analysis, model=analysis.label, models=models, asked=(), settings=settings)


def keep(seed: int, seconds: dict[str, int], analysis: Analysis) -> None:
    """Write the seed's file: estimates as [value, low, high], numbers to four digits."""
    kept = {
        "variant": "full",
        "seed": seed,
        "hardware": f"{platform.machine()} CPU, one thread, float32",
        "seconds": seconds,
        "analysis": packed(record_to_json(analysis, "analysis")),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    text = json.dumps(kept, separators=(",", ":")).replace('},{"', '},\n{"')
    (RESULTS / f"full-seed-{seed}.json").write_text(text + "\n", encoding="utf-8")


def packed(value: Any) -> Any:
    if isinstance(value, dict):
        inside = {key: packed(inner) for key, inner in value.items()}
        return list(inside.values()) if tuple(inside) == ("value", "low", "high") else inside
    if isinstance(value, list):
        return [packed(inner) for inner in value]
    return (float(f"{value:.4g}") if abs(value) >= 1 else round(value, 5)) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
