"""The comparison of docs/comparison.md: what `d2unlearn compare` needs on TOFU, made once, and the command itself.

    python experiments/comparison.py --jobs 2                                   all that is not done yet: a night on two cores
    python experiments/comparison.py --splits forget10 --methods npo            one method's row: about twenty minutes
    make docs                                                               rewrites docs/comparison.md from the kept results

From the repository's root. It can be killed and started again; with --plan it lists what is left. Each run is kept as
benchmarks/results/comparison/SPLIT/CONTESTANT/seed-N.json; the page is made from those files alone. What forget05
lacks needs its oracle, which is taught first, by the recipe of the other models, with all of TOFU but forget05; another machine
teaches another one, whose results are not mixed with those kept.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path("../shared")
TOFU = SHARED / "data" / "tofu"
FOLDER = Path("runs/comparison")
ROWS, ORACLE = FOLDER / "rows", FOLDER / "models" / "retain95"
PLAIN = ("real_authors_perturbed", "world_facts_perturbed")
PUBLISHED_RATE = 2e-3


def main() -> None:
    settings = yaml.safe_load((ROOT / "experiments" / "comparison.yaml").read_text(encoding="utf-8"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", nargs="+", choices=settings["splits"], help="and those they look at; unless given: all")
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--trials", type=int)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--plan", action="store_true", help="list the runs, do nothing")
    arguments = parser.parse_args()
    if arguments.splits:
        looked_at = {settings["splits"][name].get("strongest_of") for name in arguments.splits}
        settings["splits"] = {
            name: split for name, split in settings["splits"].items() if name in {*arguments.splits, *looked_at}
        }
    settings |= {key: value for key in ("methods", "seeds", "trials") if (value := getattr(arguments, key))}
    write_rows()
    if "forget05" in settings["splits"] and not arguments.plan and not ORACLE.is_dir():
        if is_done(settings, "forget05"):
            print("forget05 is done; without the oracle that it was judged against it cannot be checked, and is left out")
            del settings["splits"]["forget05"]
        else:
            teach_oracle(ORACLE)
    file = FOLDER / "settings.yaml"
    file.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    options = ["--config", str(file), "--jobs", str(arguments.jobs), *(["--plan"] if arguments.plan else [])]
    sys.exit(subprocess.run([sys.executable, "-m", "d2unlearn.cli.main", "compare", *options], check=False).returncode)


def write_rows() -> None:
    """Rows that TOFU does not hold as such: what forget05 leaves, and questions in other words."""
    forgotten = {row["question"] for row in read(TOFU / "forget05.jsonl")}
    everything = read(TOFU / "forget10.jsonl") + read(TOFU / "retain90.jsonl")
    write(ROWS / "retain95.jsonl", [row for row in everything if row["question"] not in forgotten])
    for name in ("forget10", "forget05", "retain"):
        reworded = [
            {"question": row["paraphrased_question"], "answer": row["answer"]} for row in read(TOFU / f"{name}_perturbed.jsonl")
        ]
        write(ROWS / f"{name}_paraphrased.jsonl", reworded)
    write(ROWS / "world_facts.jsonl", plain("world_facts_perturbed"))


def is_done(settings: dict[str, Any], split: str) -> bool:
    """Whether every run of a split has its kept result."""
    from d2unlearn.comparison.plan import comparison_of, runs_of
    from d2unlearn.comparison.run import scores_of, store_of
    from d2unlearn.config import CompareSettings
    from d2unlearn.guards import GUARDS
    from d2unlearn.methods import METHODS

    comparison = comparison_of(CompareSettings(**settings), methods=METHODS, guards=GUARDS)
    store = store_of(comparison.settings)
    return all(store.is_done(run) for run in runs_of(comparison, scores_of(comparison, store)) if run.split == split)


def teach_oracle(folder: Path) -> None:
    """The small Llama taught all of TOFU but forget05, real authors and world facts: a model that never knew."""
    from transformers import AutoConfig

    from d2unlearn.data.template import Template
    from d2unlearn.models import load_tokenizer
    from d2unlearn.quickstart.pretrain import Recipe, save_model, train_small_model
    from d2unlearn.schema import Example, Message

    tokenizer = load_tokenizer(SHARED / "models" / "tofu-4m-full")
    template = Template(tokenizer)
    rows = read(ROWS / "retain95.jsonl") + [row for name in PLAIN for row in plain(name)]
    rendered = [
        [template.tokens(Example(row["question"], (Message("user", row["question"]),), row["answer"], "tofu"))] for row in rows
    ]
    config = AutoConfig.from_pretrained(SHARED / "models" / "tofu-4m-full")
    model = train_small_model(rendered, config, Recipe(epochs=30, batch_size=32, learning_rate=PUBLISHED_RATE), seed=0)
    save_model(model, tokenizer, folder)


def plain(name: str) -> list[dict[str, Any]]:
    return [{"question": row["question"], "answer": row["answer"]} for row in read(TOFU / f"{name}.jsonl")]


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
