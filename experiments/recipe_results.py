"""The measured recipe beside the one by size, on the quickstart's world: targets met, what is left, what stayed, seconds.

    python experiments/recipe_results.py --work runs/recipe [--rows 1 20 64] [--seeds 10] [--lora]

Every run is an artifact under `--work`; what is done is not done twice. What is written of a run is what its manifest says of
the checkpoint that was kept, on the rows that the run itself looked at; the recipe by size has no targets and looks at no
renderings. Seconds are CPU time of the process, probe and evaluations included.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from d2unlearn.config import UnlearnSettings
from d2unlearn.models import quiet_transformers
from d2unlearn.quickstart.fiction import make_world, write_world
from d2unlearn.quickstart.pretrain import fiction_model
from d2unlearn.runtime import atomic_write, cache_dir, read_json, write_json
from d2unlearn.schema import MANIFEST_FILE
from d2unlearn.training.unlearn import run_unlearn

FIRST_ROW = 8
"""The first person's facts are left out: the rows are those of the people after."""
RECIPES = ("size", "measured")


def main() -> None:
    """Make what is missing and write the results."""
    options = _options()
    work, found = Path(options.work), []
    files = write_world(make_world(0), work / "data")
    model = fiction_model(cache_dir() / "fiction", seed=0)
    lines = files.forget.read_text(encoding="utf-8").splitlines(keepends=True)
    for count in options.rows:
        forget = work / "data" / f"forget-{count}.jsonl"
        atomic_write(forget, "".join(lines[FIRST_ROW : FIRST_ROW + count]))
        for seed in options.seeds:
            for recipe in RECIPES:
                name = f"{recipe}-{count}-{seed}{'-lora' if options.lora else ''}"
                settings = UnlearnSettings(
                    model=str(model),
                    forget=str(forget),
                    retain=str(files.retain),
                    output=str(work / name),
                    recipe=recipe,
                    lora=options.lora,
                    seed=seed,
                )
                found.append({"rows": count, "seed": seed, "recipe": recipe, "lora": options.lora, **_ran(settings)})
                write_json(Path(options.output), {"hardware": "2-core x86-64 CPU, shared", "parameters": "1.1M", "runs": found})


def _ran(settings: UnlearnSettings) -> dict[str, Any]:
    """What a run's manifest says, and the CPU seconds that it took (kept beside the artifact when it was made)."""
    folder = Path(settings.output)
    note = folder.with_name(f"{folder.name}.seconds.json")
    started = time.process_time()
    run_unlearn(settings)
    if not note.is_file():
        write_json(note, {"seconds": round(time.process_time() - started, 1)})
    return {**_kept_point(read_json(folder / MANIFEST_FILE)), **read_json(note)}


def _kept_point(manifest: dict[str, Any]) -> dict[str, Any]:
    """Answer probabilities and shares of right tokens at the checkpoint that was kept."""
    training, recipe = manifest["training"], manifest.get("recipe", {})
    step = int(training["kept_checkpoint"].split("-")[1])
    look = next(log for log in training["history"] if log["step"] == step)
    before = training["before"]
    return {
        "learning_rate": manifest["learning_rate"],
        "steps": training["steps"],
        "kept_step": step,
        "forget": look["eval_forget_probability"],
        "reworded": look.get("eval_reworded_probability"),
        "retain": look["eval_retain_right"] / before["retain_right"],
        "near": look["eval_near_right"] / before["near_right"],
        "forget_below": recipe.get("forget_below"),
        "met": recipe.get("met"),
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", default="runs/recipe")
    parser.add_argument("--output", default="benchmarks/results/recipe.json")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 20, 64])
    parser.add_argument("--seeds", type=int, nargs="+", default=[10])
    parser.add_argument("--lora", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    quiet_transformers()
    main()
