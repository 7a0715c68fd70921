"""Two processes train a method as one does: the same weights on both, one dual variable, answers written once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from . import two_processes
from .tiny_run import weights

pytestmark = pytest.mark.trains


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("pair")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    done = subprocess.run(
        [*launcher, two_processes.__file__, str(made)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return made


def saved(folder: Path, key: str, rank: int) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(folder / f"{key}-{rank}.pt", weights_only=True)
    return {name.removeprefix("module."): tensor for name, tensor in found.items()}


@pytest.mark.parametrize("key", list(two_processes.RUNS))
def test_two_processes_end_where_one_does(key: str, folder: Path, tmp_path: Path) -> None:
    alone = two_processes.run(tmp_path, key, 4)
    first, second = (saved(folder, key, rank) for rank in (0, 1))
    reports = [json.loads((folder / f"rank-{rank}.json").read_text())[key] for rank in (0, 1)]
    assert [report["world_size"] for report in reports] == [2, 2]
    assert reports[0]["alpha"] == reports[1]["alpha"] == pytest.approx(alone.method.alpha, rel=1e-5)
    assert all(torch.equal(first[name], second[name]) for name in first)
    far = torch.cat([(first[name] - tensor).abs().flatten() for name, tensor in weights(alone.model).items()])
    assert far.quantile(0.999).item() < 1e-5  # a hundredth of a step
    assert far.max().item() < 6e-3  # AdamW moves a weight whose gradient is all rounding one way or the other, three times


def test_the_model_wrote_its_answers_once(folder: Path) -> None:
    (stored,) = (folder / "cache-altpo").glob("alternates-*.json")
    assert len(json.loads(stored.read_text())["answers"]) == 4
