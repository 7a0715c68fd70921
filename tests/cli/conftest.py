"""A tiny model, small files, and the whole way from one to a report, walked once for the session."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import tiny_models

from .command import Ran, d2

FILLERS = ["is", "of", "it", "he", "she", "was", "born", "in", "a", "city"]


def rows(seed: int, n: int, about: str, *, group_size: int = 4) -> list[dict[str, Any]]:
    """Questions about a country or its capital; every fourth row begins another group."""
    rng = np.random.default_rng(seed)

    def words(low: int, high: int) -> str:
        return " ".join(rng.choice(FILLERS, size=rng.integers(low, high)))

    return [
        {"question": f"What {about} {words(2, 6)} {i}?", "answer": f"{words(1, 5)}.", "group": f"{about} {i // group_size}"}
        for i in range(n)
    ]


def write_rows(path: Path, given: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in given), encoding="utf-8")
    return path


class Given(NamedTuple):
    """What a person comes with: a model folder and files of rows."""

    model: Path
    forget: Path
    retain: Path
    test: Path


class Walked(NamedTuple):
    """The whole way: its folder, and how each command ended."""

    folder: Path
    given: Given
    artifact: Path
    ran: dict[str, Ran]


def save_model(folder: Path, *, seed: int = 0) -> Path:
    tokenizer = tiny_models.tokenizer()
    tiny_models.llama(seed=seed, vocabulary=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    folder = tmp_path_factory.mktemp("given")
    return Given(
        save_model(folder / "model"),
        write_rows(folder / "forget.jsonl", rows(1, 16, "Berlin")),
        write_rows(folder / "retain.jsonl", rows(2, 120, "Paris")),
        write_rows(folder / "test.jsonl", rows(3, 12, "Paris")),
    )


UNLEARN = "epochs: 1\nbatch-size: 4\naccumulation: 1\nlearning_rate: 1e-2\nmethod_parameters: {gamma: 0.5}\n"
CALIBRATE = ("--max-false-refusal", 0.05, "--max-new-tokens", 6, "--refusal", "he was")
QUESTIONS = [
    {"id": 7, "prompt": "What Berlin is it 3?", "note": "kept, “é”"},
    {"id": 8, "prompt": "What Paris is it 3?", "text": "replaced", "nested": {"also": ["kept", None]}},
    {"id": 9, "prompt": "What<eos>?"},
]


@pytest.fixture(scope="session")
def walked(tmp_path_factory: pytest.TempPathFactory, given: Given) -> Walked:
    folder = tmp_path_factory.mktemp("walked")
    artifact = folder / "artifact"
    (folder / "unlearn.yaml").write_text(UNLEARN + f"model: {given.model}\nforget: {given.forget}\n", encoding="utf-8")
    write_rows(folder / "questions.jsonl", QUESTIONS)
    commands: dict[str, tuple[object, ...]] = commands_of(folder, given, artifact)
    return Walked(folder, given, artifact, {name: d2(*command) for name, command in commands.items()})


def commands_of(folder: Path, given: Given, artifact: Path) -> dict[str, tuple[object, ...]]:
    """The walked commands, in their order."""
    rows_of = ("--forget", given.forget, "--retain", given.test)
    read, written = folder / "questions.jsonl", folder / "answers.jsonl"
    settings = ("--config", folder / "unlearn.yaml", "--retain", given.retain, "--epochs", 8)
    return {
        "unlearn": ("unlearn", *settings, "--output", artifact),
        "calibrate": ("calibrate", "--model", artifact, "--retain", given.retain, "--forget", given.forget, *CALIBRATE),
        "generate": ("generate", "--model", artifact, "--input", read, "--output", written),
        "before": ("evaluate", "--model", given.model, *rows_of, "--output", folder / "before", "--max-new-tokens", 6),
        "after": ("evaluate", "--model", artifact, *rows_of, "--output", folder / "after", "--max-new-tokens", 6),
        "report": (
            *("report", "--before", folder / "before", "--after", folder / "after"),
            *("--artifact", artifact, "--output", folder / "report.html"),
        ),
    }


@pytest.fixture
def another(walked: Walked, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of the walked artifact under a name, to do things to."""

    def copied(name: str) -> Path:
        return Path(shutil.copytree(walked.artifact, tmp_path / name))

    return copied
