"""A comparison in small: a model that was taught rows about two cities, one that never saw Berlin, and settings for both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

import tiny_models
from d2unlearn.config import CompareSettings
from d2unlearn.data.template import Template
from d2unlearn.quickstart.pretrain import Recipe, train_small_model
from d2unlearn.saving import save_model
from d2unlearn.schema import Example, Message

EPOCHS = 30
FILLERS = ["is", "of", "it", "he", "she", "was", "born", "in", "a", "city"]


def rows(seed: int, n: int, about: str, *, group_size: int = 4) -> list[dict[str, Any]]:
    """Questions about one city, each with another answer; every fourth row begins another author."""
    rng = np.random.default_rng(seed)

    def words(low: int, high: int) -> str:
        return " ".join(rng.choice(FILLERS, size=rng.integers(low, high)))

    return [
        {"question": f"What {about} {words(2, 6)} {i}?", "answer": f"{words(2, 6)} {i}.", "group": f"{about} {i // group_size}"}
        for i in range(n)
    ]


def perturbed(given: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with TOFU's further columns: right and wrong answers in other words."""
    found = []
    for row in given:
        words = str(row["answer"]).split()
        further = {"paraphrased_answer": " ".join(["it", *words]), "paraphrased_question": f"it {row['question']}"}
        wrong = [" ".join([*words[:1], filler, "city."]) for filler in FILLERS[:2]]
        found.append({"question": row["question"], "answer": row["answer"], "perturbed_answer": wrong, **further})
    return found


def write(path: Path, given: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in given), encoding="utf-8")
    return path


def teach(folder: Path, *given: list[dict[str, Any]]) -> Path:
    """A model of 32 numbers a token that knows most of the rows: seconds of training."""
    tokenizer = tiny_models.tokenizer()
    template = Template(tokenizer)
    facts = [
        [template.tokens(Example(row["question"], (Message("user", row["question"]),), row["answer"], "city"))]
        for some in given
        for row in some
    ]
    config = tiny_models.llama(vocabulary=len(tokenizer)).config
    recipe = Recipe(epochs=EPOCHS, batch_size=16, learning_rate=1e-2, weight_decay=0.0)
    save_model(train_small_model(facts, config, recipe, seed=0, threads=1), tokenizer, folder)
    return folder


def settings_in(folder: Path, **changes: Any) -> CompareSettings:
    """Everything that a comparison is given, made in a folder."""
    berlin, paris = rows(1, 24, "Berlin"), rows(2, 160, "Paris")
    other = [{**row, "question": f"it {row['question']}"} for row in berlin]
    split = {
        "forget": str(write(folder / "forget.jsonl", berlin)),
        "retain": str(write(folder / "retain.jsonl", paris)),
        "oracle": str(teach(folder / "oracle", paris)),
        "also_forget": {"forget_paraphrased": str(write(folder / "paraphrased.jsonl", other))},
        "benchmark": "tofu",
        "data": str(folder / "tofu"),
    }
    sets = {"cities": berlin, "retain": paris[:8], "real_authors": paris[8:12], "world_facts": paris[12:16]}
    for name, some in sets.items():
        write(folder / "tofu" / f"{name}_perturbed.jsonl", perturbed(some))
    given: dict[str, Any] = {
        "model": str(teach(folder / "model", berlin, paris)),
        "splits": {"cities": split},
        "output": str(folder / "out"),
        "methods": ["eua", "gradient_difference"],
        "guards": ["input_classifier"],
        "left_out": {"prompt_guard": "needs a model that follows instructions"},
        "seeds": [0],
        "trials": 2,
        "learning_rate": 3e-3,
        "epochs": 4.0,
        "batch_size": 6,
        "accumulation": 1,
        "max_false_refusal": 0.05,
        "test_rows": 12,
        "max_new_tokens": 4,
        "wording_rows": 4,
        "backend": "here",
    }
    return CompareSettings(**{**given, **changes})
