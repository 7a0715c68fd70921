"""Two processes are one: other rows for each, and the weights of one process at the same effective batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

import tiny_models
from d2unlearn.config import UnlearnSettings
from d2unlearn.data.batching import pad_tokens
from d2unlearn.training.sampling import PairPlan
from d2unlearn.training.unlearn import run_unlearn

from . import two_processes
from .runs import FORGET, RETAIN, distance, lora, trained, trainer, unlearn_settings, weights

pytestmark = pytest.mark.trains

ALONE = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}


class Pair(NamedTuple):
    """What two processes wrote: a folder with weights, and a report from each."""

    folder: Path
    reports: list[dict[str, Any]]
    settings: UnlearnSettings


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    settings = replace(unlearn_settings(folder), output=str(folder / "artifact"), batch_size=2, accumulation=1, epochs=2)
    (folder / "settings.json").write_text(json.dumps(asdict(settings)))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    done = subprocess.run(
        [*launcher, two_processes.__file__, str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return Pair(folder, [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)], settings)


def saved(pair: Pair, name: str) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(pair.folder / f"{name}.pt", weights_only=True)
    return found


def test_there_were_two(pair: Pair) -> None:
    assert [report["world_size"] for report in pair.reports] == [2, 2]
    assert [report["rank"] for report in pair.reports] == [0, 1]


def test_each_process_draws_its_own_rows_and_together_they_draw_those_of_one(pair: Pair) -> None:
    """Micro-batch m of process r holds rows 2 (2 m + r) and the next of the plan. See open-unlearning 139, 144."""
    first, second = (report["seen"] for report in pair.reports)
    assert len(first) == len(second) == 3 * 2
    assert all(a["retain"] != b["retain"] and a["forget"] != b["forget"] for a, b in zip(first, second, strict=True))
    plan = PairPlan(len(FORGET), len(RETAIN), effective_batch=8, seed=42)
    for rank, seen in enumerate((first, second)):
        for number, batch in enumerate(seen):
            chosen = [plan[2 * (2 * number + rank) + i] for i in range(2)]
            assert batch["forget"] == pad_tokens([FORGET[p.forget] for p in chosen], pad_id=0).input_ids.tolist()
            assert batch["retain"] == pad_tokens([RETAIN[p.retain] for p in chosen], pad_id=0).input_ids.tolist()


def test_the_weights_are_those_of_one_process_at_the_same_effective_batch(pair: Pair, tmp_path: Path) -> None:
    alone = trained(tmp_path, tiny_models.llama(), **ALONE, **two_processes.PLAIN)
    assert distance(saved(pair, "full"), alone) < 1e-5
    assert distance(alone, weights(tiny_models.llama())) > 1e-3
    assert distance(saved(pair, "cached"), saved(pair, "full")) == 0.0


def test_an_adapter_behind_checkpointed_activations_trains_alike(pair: Pair, tmp_path: Path) -> None:
    alone = trained(tmp_path, tiny_models.llama(), **ALONE, **two_processes.PLAIN, peft_config=lora())
    assert distance(saved(pair, "adapter"), alone) < 1e-5


def test_resuming_in_the_middle_of_an_epoch_gives_the_same_weights_bit_for_bit(pair: Pair) -> None:
    assert distance(saved(pair, "resumed"), saved(pair, "steps")) == 0.0
    assert distance(saved(pair, "steps"), weights(tiny_models.llama())) > 1e-3


def test_both_processes_log_what_one_would(pair: Pair, tmp_path: Path) -> None:
    made = trainer(tmp_path, tiny_models.llama(), **ALONE, **two_processes.PLAIN)
    made.train()
    watched = {"loss", "forget_hinge_active", "retain_hinge_active", "retain_nll", "eval_selection", "eval_retain_nll"}
    expected = [{name: log[name] for name in watched & log.keys()} for log in made.state.log_history]
    for report in pair.reports:
        found = [{name: log[name] for name in watched & log.keys()} for log in report["logs"]]
        assert [log.keys() for log in found] == [log.keys() for log in expected]
        for ours, theirs in zip(found, expected, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5)


def test_the_command_makes_one_artifact_that_is_that_of_one_process(pair: Pair, tmp_path: Path) -> None:
    folder = run_unlearn(replace(pair.settings, output=str(tmp_path / "alone"), accumulation=2))
    ours, theirs = (load_file(Path(each) / "model.safetensors") for each in (pair.settings.output, folder))
    assert distance(ours, theirs) < 1e-5
    assert not (pair.folder / "artifact.partial").exists()
