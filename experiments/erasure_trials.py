"""Recipes of erasure, tried on authors that judge nothing: which parameters `deep_eua` has, and what each costs.

    python experiments/erasure_trials.py --shared ../shared --recipes restoring --seeds 10    resumable; half an hour

The forget set is twenty authors of TOFU's retain90, drawn by the seed; of the other authors' rows 300 are in no file that
training or self-writing reads. Nothing of forget10 is looked at, and no wording that judges. Recipes of a seed begin with one
EUA, or with none. There is no oracle here: one would have to be taught for each seed. Judged on drawn
rows, so that a judgement takes two minutes. What is kept: benchmarks/results/erasure/RECIPE-seed-N.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from d2unlearn.attacks.reading import AskedRows
from d2unlearn.attacks.relearned_rows import RowChoice, divided
from d2unlearn.attacks.relearning import Relearning, ask_after_relearning
from d2unlearn.attacks.restoring import restore, weight_parts
from d2unlearn.config import UnlearnSettings
from d2unlearn.data.records import read_examples
from d2unlearn.data.template import Template
from d2unlearn.methods import METHODS
from d2unlearn.methods.base import Deepening, Hardening
from d2unlearn.metrics.memorization import answer_probability, extraction_strength
from d2unlearn.models import load_model, load_tokenizer
from d2unlearn.runtime import say, write_json
from d2unlearn.schema import Example, Tokens
from d2unlearn.teacher_forcing import score_rows
from d2unlearn.training.deepening import phases
from d2unlearn.training.rounds import phase_file, run_rounds
from d2unlearn.training.unlearn import run_unlearn
from second_family import read_rows

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "erasure"
AUTHORS, ROWS_EACH, UNSEEN = 20, 20, 300
EUA_EPOCHS, LEARNING_RATE = 3, 3e-4
ASKED = {"forget": 60, "unseen": 150, "retain": 60, "world_facts": 60}
"""Rows of each set that are judged, drawn evenly."""
ALONE: dict[str, Any] = {"hardening_steps": 0, "hardening_again": 0}
"""No training against an attacker."""
RECIPES: dict[str, dict[str, Any]] = {
    "eua": {**ALONE, "blocks": 0},
    "restoring": {
        **ALONE,
        "restoring": True,
        "blocks": 3,
        "rounds": 2,
        "size": 0.04,
        "damping": 0.2,
        "healing_steps": 12,
        "healing_rate": 1.5,
        "healing_gamma": 0.05,
        "rest_steps": 120,
        "written": 1500,
    },
    "from the original": {
        **ALONE,
        "blocks": 2,
        "rounds": 3,
        "attack_steps": 1,
        "restoring": False,
        "size": 0.05,
        "damping": 0.2,
        "healing_steps": 12,
        "healing_rate": 2.0,
        "rest_steps": 150,
        "written": 1500,
    },
}
HARDENED: dict[str, Any] = {"hardening_steps": 260, "hardening_again": 0, "blocks": 0, "healing_rate": 1.0, "written": 1500}
RECIPES["hardened"] = HARDENED
RECIPES["hardened, rounds"] = {
    **HARDENED,
    "blocks": 2,
    "rounds": 2,
    "restoring": False,
    "size": 0.03,
    "damping": 0.05,
    "healing_steps": 12,
    "rest_steps": 120,
}
RECIPES["hardened, rounds, healed without hinges"] = {**RECIPES["hardened, rounds"], "healing_gamma": 0.0}
FOUR: dict[str, Any] = {**RECIPES["hardened, rounds"], "blocks": 1, "rounds": 4, "size": 0.04, "rest_steps": 60}
"""Fewer rests, and larger steps; hardened again, this is `deep_eua` by default."""
RECIPES["four rounds"] = FOUR
RECIPES["four rounds, hardened again"] = {**FOUR, "hardening_again": 150}
RECIPES["sixteen rounds, hardened again"] = {**FOUR, "rounds": 16, "size": 0.015, "healing_steps": 6, "hardening_again": 150}
RECIPES["two blocks of three rounds, hardened again"] = {**FOUR, "blocks": 2, "rounds": 3, "hardening_again": 150}
BEGINS_WITH = {name: ("hardened", (0, 1)) for name in RECIPES if RECIPES[name]["hardening_steps"] and name != "hardened"}
"""Recipes that go on where another ended, and the phases that are taken over: against an attacker, and the rest after it."""
BEGINS_WITH["hardened, rounds, healed without hinges"] = ("hardened", (0,))
NO_EUA = ("from the original",)
"""Recipes whose rounds begin with the original: nothing is hidden that they would have to find."""
ATTACKS: tuple[tuple[RowChoice, Relearning], ...] = (
    ("spread over groups", Relearning(5e-4, (20, 80))),
    ("spread over groups", Relearning(1e-3, (20, 80))),
    ("whole groups", Relearning(5e-4, (20, 80))),
    ("half of each group", Relearning(5e-4, (80,))),
    ("one row", Relearning(5e-4, (20,))),
    ("spread over groups", Relearning(2e-3, (80,), lora_rank=16)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder with data/tofu and models/")
    parser.add_argument("--work", type=Path, default=Path("runs/erasure"))
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12])
    arguments = parser.parse_args()
    os.environ.setdefault("D2UNLEARN_CACHE", str(arguments.work / "cache"))
    for seed in arguments.seeds:
        for recipe in arguments.recipes:
            tried(recipe, seed, arguments.shared, arguments.work / f"seed-{seed}")


def tried(recipe: str, seed: int, shared: Path, work: Path) -> None:
    """One recipe with one seed, from data to the kept JSON; done ones are not repeated, nor what they share."""
    kept = RESULTS / f"{recipe.replace(' ', '-')}-seed-{seed}.json"
    if kept.is_file():
        return
    original = shared / "models" / "tofu-4m-full"
    files = write_sets(shared / "data" / "tofu", work / "data", seed)
    started = time.process_time()
    start = original if recipe in NO_EUA else started_with(original, files, work / "eua", seed)
    model = load_model(start).float()  # type: ignore[no-untyped-call]
    plan = METHODS["deep_eua"](**RECIPES[recipe]).deepening
    tokenizer = load_tokenizer(original)
    if plan is not None:
        forget, retain = (read_examples(str(files[name])) for name in ("forget", "retain"))
        state = work / f"{recipe}.pt"
        take_over(work, recipe, *BEGINS_WITH.get(recipe, ("", ())))
        about: dict[str, Any] = {"rate": LEARNING_RATE, "seed": seed, "max_length": 512, "batch_size": 16, "state": state}
        about["cache"] = work / "written"
        run_rounds(model, load_model(original), tokenizer, plan, forget, retain, **about)
    seconds = time.process_time() - started
    epochs = 0 if recipe in NO_EUA else EUA_EPOCHS
    found = {"recipe": RECIPES[recipe], "seed": seed, "eua_epochs": epochs, "cpu_seconds": round(seconds, 1)}
    if recipe in BEGINS_WITH:
        found["cpu_seconds_after"] = BEGINS_WITH[recipe][0]
    found["cost"] = round(token_passes(plan, epochs, AUTHORS * ROWS_EACH), 2)
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_json(kept, {**found, **judged(model, load_model(original), files, Template(tokenizer), seed)})
    say(f"kept: {kept}\n{kept.read_text()}")


def take_over(work: Path, recipe: str, begun: str, numbers: Sequence[int]) -> None:
    """Copies where another recipe ended as where this one stands, unless it stands somewhere already."""
    if any(work.glob(f"{recipe}-[0-9]*.pt")):
        return
    for number in numbers:
        source = phase_file(work / f"{begun}.pt", number)
        if source.is_file():
            shutil.copyfile(source, phase_file(work / f"{recipe}.pt", number))


def token_passes(plan: Deepening | None, epochs: int, forget: int) -> float:
    """Rows passed, a backward counted as two forwards, as a multiple of what EUA passes in its ten epochs.

    A round: its attack of 8 rows a step, and every forget row once; a healing step: 24 rows, and one forward of the original.
    A step against an attacker: 8 rows of his, 16 at the model, of which the original sees as many, and 16 at the attacked copy.
    The second moments and the rows that the original wrote are counted too.
    """
    eua = 3 * 2 * forget
    if plan is None:
        return epochs / 10
    parts = phases(plan)
    against = sum(part.steps for part in parts if isinstance(part, Hardening)) * ((8 + 16 + 16) * 3 + 16)
    healing = sum(stage.steps for part in parts if not isinstance(part, Hardening) for stage in part) * 24 * 4
    rounds = plan.blocks * plan.rounds * (8 * plan.attack.steps + forget) * 3
    return epochs / 10 + (against + rounds + healing + 3 * plan.step.moment_rows + plan.written) / (10 * eua)


def started_with(original: Path, files: dict[str, Path], output: Path, seed: int) -> Path:
    """EUA as every recipe begins, on few epochs: what it hides the rounds find."""
    return run_unlearn(
        UnlearnSettings(
            model=str(original),
            forget=str(files["forget"]),
            retain=str(files["retain"]),
            output=str(output),
            seed=seed,
            epochs=EUA_EPOCHS,
            keep="last",
        )
    )


def write_sets(tofu: Path, folder: Path, seed: int) -> dict[str, Path]:
    """The files of one seed: twenty drawn authors of retain90 to forget, the others' rows to keep but those never shown."""
    rows = read_rows(tofu / "retain90.jsonl")
    for index, row in enumerate(rows):
        row["group"] = f"author-{index // ROWS_EACH}"
    rng = random.Random(seed)
    chosen = set(rng.sample(range(len(rows) // ROWS_EACH), AUTHORS))
    others = [index for index in range(len(rows)) if index // ROWS_EACH not in chosen]
    unseen = set(rng.sample(others, UNSEEN))
    facts = [{key: row[key] for key in ("question", "answer")} for row in read_rows(tofu / "world_facts_perturbed.jsonl")]
    sets = {
        "forget": [row for index, row in enumerate(rows) if index // ROWS_EACH in chosen],
        "retain": [rows[index] for index in others if index not in unseen],
        "unseen": [rows[index] for index in sorted(unseen)],
        "world_facts": facts,
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for name, of_set in sets.items():
        paths[name] = folder / f"{name}.jsonl"
        paths[name].write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in of_set))
    return paths


def judged(
    model: PreTrainedModel, original: PreTrainedModel, files: dict[str, Path], template: Template, seed: int
) -> dict[str, Any]:
    """What is told at rest, by set as (extraction strength, answer probability), and what comes back, as answer probability."""
    examples = {name: read_examples(str(path)) for name, path in files.items()}
    rest = {}
    for name, count in ASKED.items():
        scores = score_rows(model, [template.tokens(row) for row in evenly(examples[name], count)], batch_size=32)
        strength = np.mean([extraction_strength(row.correct) for row in scores])
        rest[name] = [round(float(value), 4) for value in (strength, np.mean([answer_probability(row.nll) for row in scores]))]
    rows = [template.tokens(row) for row in examples["forget"]]
    back = {name: value for part in attacked(model, original, examples["forget"], rows, seed) for name, value in part.items()}
    return {"rest": rest, "comes_back": back}


def attacked(
    model: PreTrainedModel, original: PreTrainedModel, forget: Sequence[Example], rows: Sequence[Tokens], seed: int
) -> Iterator[dict[str, float]]:
    """{attack: mean answer probability of rows that were not relearned}; then of forget rows with a part put back."""
    groups = [str(row.group) for row in forget]
    for choice, attack in ATTACKS:
        division = divided(choice, groups, share=0.1, seed=1000 + seed)
        asked = asked_rows(forget, rows, evenly(division.asked, ASKED["forget"]))
        for reading in ask_after_relearning(model, [rows[index] for index in division.relearned], [asked], attack, {}):
            how = "LoRA " if attack.lora_rank else ""
            yield {
                f"{choice}, {how}{attack.learning_rate:g}, {reading.setting['steps']}": round(
                    float(np.nanmean(reading.values)), 4
                )
            }
    asked = asked_rows(forget, rows, evenly(range(len(rows)), ASKED["forget"]))
    for part in weight_parts(model):
        yield {f"{part} restored": round(float(np.nanmean(restore(model, original, asked, part).values)), 4)}


def asked_rows(forget: Sequence[Example], rows: Sequence[Tokens], chosen: Sequence[int]) -> AskedRows:
    return AskedRows("forget", tuple(rows[index] for index in chosen), tuple(str(forget[index].group) for index in chosen))


def evenly(items: Sequence[Any], count: int) -> list[Any]:
    return [items[index * len(items) // count] for index in range(min(count, len(items)))]


if __name__ == "__main__":
    main()
