"""One thread, a tokenizer, and the folder of large test data where there is one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerFast

import tiny_models

ROOT = Path(__file__).parent.parent


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
