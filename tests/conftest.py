"""One thread, a tokenizer, the folder of large test data where there is one, and what the marks mean."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import transformers
from transformers import PreTrainedTokenizerFast, Trainer

import d2unlearn.runtime
import tiny_models

ROOT = Path(__file__).parent.parent
TRAINED = {"walked", "compared"}
"""Fixtures that train; tests that ask for one of them are marked `trains`."""
SLOW = pytest.StashKey[list[str]]()
"""Ids of the tests that were found and are marked `slow`, run or not."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--keep", type=Path, help="write outcomes, seconds and versions to this file")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and not TRAINED.isdisjoint(item.fixturenames):
            item.add_marker(pytest.mark.trains)
    config.stash[SLOW] = [item.nodeid for item in items if item.get_closest_marker("slow")]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """A test that is not marked `trains` finds that nothing can be trained."""
    if item.get_closest_marker("trains"):
        return (yield)

    def train(*_: object, **__: object) -> None:
        raise AssertionError("this test trains and is not marked with pytest.mark.trains")

    with patch.object(Trainer, "train", train):
        return (yield)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    path = config.getoption("--keep")
    if path is None:
        return
    ended = {outcome: terminalreporter.getreports(outcome) for outcome in ("passed", "failed", "error", "skipped")}
    tests = {report.nodeid: [outcome, round(report.duration, 1)] for outcome, reports in ended.items() for report in reports}
    versions = {"d2unlearn": d2unlearn.__version__, "python": platform.python_version()}
    versions |= {"torch": torch.__version__, "transformers": transformers.__version__}
    path.write_text(json.dumps({"versions": versions, "tests": dict(sorted(tests.items()))}, indent=1) + "\n", encoding="utf-8")


@pytest.fixture(autouse=True, scope="session")
def nothing_takes_long() -> Iterator[None]:
    """What a command says does not depend on how busy the machine is."""
    with patch.object(d2unlearn.runtime, "PATIENCE", 3600.0):
        yield


@pytest.fixture(autouse=True, scope="session")
def single_thread() -> Iterator[None]:
    """Quick for tiny models, and sums in the same order every time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def chat_tokenizer() -> PreTrainedTokenizerFast:
    return tiny_models.tokenizer()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real models and data, `../shared` or `$D2_SHARED`."""
    folder = Path(os.environ.get("D2_SHARED") or ROOT.parent / "shared")
    if not folder.is_dir():
        pytest.skip(f"needs real models and data, and {folder} is not there (set D2_SHARED)")
    return folder
