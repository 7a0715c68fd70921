"""What holds the suite and the names together: slow tests have a kept result, and a public name has one meaning."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import SLOW

ROOT = Path(__file__).resolve().parents[1]


def test_every_slow_test_passed_when_it_was_last_run(request: pytest.FixtureRequest) -> None:
    """Of those that were found with this one: `make test-slow` writes the file."""
    kept = json.loads((ROOT / "tests" / "slow.json").read_text(encoding="utf-8"))["tests"]
    assert [name for name in request.config.stash[SLOW] if kept.get(name, ["missing"])[0] != "passed"] == []


def test_a_public_name_is_defined_once_or_as_contributing_says() -> None:
    command = [sys.executable, str(ROOT / "docs" / "build" / "public_names.py")]
    assert subprocess.run(command, capture_output=True, text=True, timeout=120, check=False).stdout == ""
