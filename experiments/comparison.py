"""The comparison of docs/comparison.md: what `d2unlearn compare` needs on TOFU, made once, and the command itself.

    python experiments/comparison.py --jobs 2                              all that is not done yet: a night on two cores
    python experiments/comparison.py --splits forget10 --method npo        one method's row: about twenty minutes
    make docs                                                              rewrites docs/comparison.md from the kept results

From the repository's root. It can be killed and started again; with --plan it lists what is left, and all other options of the
command can be given too. Each run is kept as benchmarks/results/comparison/SPLIT/METHOD/seed-N.json; the page is made from
those files alone. What forget05 lacks needs its retain model, which is taught first, by the recipe of the other models, with
all of TOFU but forget05; another machine teaches another one, whose results are not mixed with those kept.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoConfig

from d2unlearn.comparison.output import known_runs
from d2unlearn.comparison.plan import comparison_of
from d2unlearn.comparison.run import store_of
from d2unlearn.config import CompareSettings
from d2unlearn.data.records import read_examples
from d2unlearn.data.template import Template
from d2unlearn.data.tofu import GENERAL_SPLITS, paraphrased, read_tofu
from d2unlearn.guards import GUARDS
from d2unlearn.methods import METHODS
from d2unlearn.models import load_tokenizer
from d2unlearn.quickstart.pretrain import Recipe, save_model, train_small_model
from d2unlearn.schema import Example

SETTINGS = Path(__file__).resolve().with_name("comparison.yaml")
SHARED = Path("../shared")
TOFU, FULL = SHARED / "data" / "tofu", SHARED / "models" / "tofu-4m-full"
FOLDER = Path("runs/comparison")
ROWS, RETAIN_MODEL = FOLDER / "rows", FOLDER / "models" / "retain95"
PUBLISHED_RATE = 2e-3


def main() -> None:
    settings = yaml.safe_load(SETTINGS.read_text(encoding="utf-8"))
    splits = settings["splits"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", nargs="+", choices=splits, default=list(splits), help="and those they look at")
    arguments, options = parser.parse_known_args()
    wanted = {*arguments.splits, *(splits[name].get("strongest_of") for name in arguments.splits)}
    settings["splits"] = {name: split for name, split in splits.items() if name in wanted}
    write_rows()
    if "forget05" in wanted and "--plan" not in options and not RETAIN_MODEL.is_dir():
        if is_done(settings, "forget05"):
            print("forget05 is done; without its retain model it cannot be checked, and is left out")
            del settings["splits"]["forget05"]
        else:
            teach_retain_model()
    file = FOLDER / "settings.yaml"
    file.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "d2unlearn.cli.main", "compare", "--config", str(file), *options]
    sys.exit(subprocess.run(command, check=False).returncode)


def write_rows() -> None:
    """Rows that TOFU does not hold as such: what forget05 leaves, and questions in other words."""
    forgotten = {row.question for row in read_tofu("forget05", TOFU)}
    everything = [*read_tofu("forget10", TOFU), *read_tofu("retain90", TOFU)]
    write("retain95", [row for row in everything if row.question not in forgotten])
    for name in ("forget10", "forget05", "retain"):
        write(f"{name}_paraphrased", paraphrased(read_tofu(f"{name}_perturbed", TOFU)))
    write("world_facts", read_tofu("world_facts_perturbed", TOFU))


def write(name: str, rows: Sequence[Example]) -> None:
    ROWS.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"question": row.question, "answer": row.answer}, ensure_ascii=False) + "\n" for row in rows]
    (ROWS / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def is_done(settings: dict[str, Any], split: str) -> bool:
    """Whether every run of a split has its kept result."""
    comparison = comparison_of(CompareSettings(**settings), methods=METHODS, guards=GUARDS)
    store = store_of(comparison.settings)
    return all(store.is_done(run) for run in known_runs(comparison, store) if run.split == split)


def teach_retain_model() -> None:
    """The small Llama taught all of TOFU but forget05, real authors and world facts."""
    tokenizer = load_tokenizer(FULL)
    template = Template(tokenizer)
    rows = [*read_examples(ROWS / "retain95.jsonl"), *(row for split in GENERAL_SPLITS for row in read_tofu(split, TOFU))]
    recipe = Recipe(epochs=30, batch_size=32, learning_rate=PUBLISHED_RATE)
    model = train_small_model([[template.tokens(row)] for row in rows], AutoConfig.from_pretrained(FULL), recipe, seed=0)
    save_model(model, tokenizer, RETAIN_MODEL)


if __name__ == "__main__":
    main()
