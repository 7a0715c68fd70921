"""Two kills at random moments by the script whose long run is benchmarks/results/kills.json."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "kills.py"


@pytest.mark.trains
def test_an_unlearning_that_was_killed_gives_the_same_artifact_when_it_is_run_again(tmp_path: Path) -> None:
    """By the clock and at a change of a file; what was done is not done again."""
    work, output = tmp_path / "work", tmp_path / "kills.json"
    command = [sys.executable, str(SCRIPT), "--kills", "unlearn=2", "--work", str(work), "--output", str(output)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(output.read_text())["commands"]["unlearn"]
    assert (found["kills"], found["wrong"]) == (2, 0)
    assert [each["by"] for each in found["each"]] == ["clock", "file"]
    assert {path.name for path in (work / "unlearn" / "alone" / "artifact").iterdir()} >= {
        "model.safetensors",
        "d2_manifest.json",
    }
    assert len((work / "unlearn" / "kills.jsonl").read_text().splitlines()) == 2
