"""The whole comparison in small, carried out once for the session."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from d2unlearn.benchmark import results
from d2unlearn.comparison import evaluating
from d2unlearn.comparison.run import run_compare
from d2unlearn.config import CompareSettings
from d2unlearn.metrics import separation

from .tiny import settings_in


class Compared(NamedTuple):
    """What was asked for, where it stands, and what the command said."""

    settings: CompareSettings
    output: Path
    said: list[str]


@pytest.fixture(scope="session", autouse=True)
def little_relearning() -> Iterator[None]:
    """Two of the choices of rows at one of the rates: what is compared needs no more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluating, "RELEARNED_ROWS", ("spread over groups", "one row"))
        patch.setattr(evaluating, "TWO_DECADES", (1.0,))
        yield


@pytest.fixture(scope="session")
def given(tmp_path_factory: pytest.TempPathFactory) -> CompareSettings:
    return settings_in(tmp_path_factory.mktemp("given"))


@contextmanager
def few_draws() -> Iterator[None]:
    """Enough for intervals to be intervals."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(separation, "SEPARATION_DRAWS", 20)
        patch.setattr(results, "SUITE_DRAWS", 20)
        yield


@pytest.fixture(scope="session")
def compared(given: CompareSettings) -> Compared:
    """Two methods and a guard, tuned and evaluated."""
    with few_draws():
        said = list(run_compare(given))
    return Compared(given, Path(given.output), said)
