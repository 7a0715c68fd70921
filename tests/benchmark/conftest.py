"""The made-up TOFU, the model that was taught it and the one that was not, and the reference's evaluation restated."""

from __future__ import annotations

import importlib.util
import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
from transformers import PreTrainedTokenizerFast

import tiny_models
from benchmark import tiny_tofu
from d2unlearn.data.tofu import read_tofu
from d2unlearn.gate import EnergyGate
from d2unlearn.generation.guarded import GuardedModel, Prompt
from d2unlearn.models import load_model, load_tokenizer
from gate.conftest import at

ROOT = Path(__file__).resolve().parents[2]


class World(NamedTuple):
    """Folders: the data, a model that was taught forget and kept rows, and one that never saw the forget rows."""

    data: Path
    knows: Path
    never_knew: Path


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("tiny-tofu")
    data = tiny_tofu.write(folder / "data")
    tokenizer = tiny_models.tokenizer()
    kept = ["retain_perturbed", "real_authors_perturbed", "world_facts_perturbed"]
    for name, splits in (("knows", ["forget10_perturbed", *kept]), ("never_knew", kept)):
        model = tiny_tofu.taught(tokenizer, data, splits, steps=12)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return World(data, folder / "knows", folder / "never_knew")


@pytest.fixture(scope="session")
def artifact(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that knows behind a gate which refuses half of the forget questions."""
    folder = tmp_path_factory.mktemp("guarded") / "artifact"
    shutil.copytree(world.knows, folder)
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    retain = [e for split in ("retain_perturbed", "world_facts_perturbed", "holdout10") for e in read_tofu(split, world.data)]
    gate = EnergyGate.calibrate(model, tokenizer, retain, max_false_refusal=0.2, max_new_tokens=8, refusal_texts=["he is"])
    gate.save(folder)
    put_threshold_in_the_middle(folder, [example.prompt for example in read_tofu("forget10_perturbed", world.data)], 200)
    return folder


def put_threshold_in_the_middle(folder: Path, prompts: Sequence[Prompt], max_new_tokens: int) -> None:
    """The gate in the folder then refuses half of these prompts."""
    gate = EnergyGate.from_pretrained(folder)
    never = GuardedModel(load_model(folder), load_tokenizer(folder), at(gate, math.inf))
    scores = sorted(float(answer.score or 0.0) for answer in never.answer(prompts, max_new_tokens=max_new_tokens))
    middle = (scores[(len(scores) - 1) // 2] + scores[len(scores) // 2]) / 2
    at(replace(gate, calibration=replace(gate.calibration, conformal_threshold=middle)), middle).save(folder)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_models.tokenizer()


@pytest.fixture(scope="session")
def restated() -> ModuleType:
    """`benchmarks/reference_evaluation.py`."""
    path = ROOT / "benchmarks" / "reference_evaluation.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module
