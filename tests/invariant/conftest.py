"""A copy of what was kept, to work in."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from .walk import DATA


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `data/`; the test runs in it, since the commands name everything relative to it."""
    folder = Path(shutil.copytree(DATA, tmp_path / "old"))
    monkeypatch.chdir(folder)
    return folder
