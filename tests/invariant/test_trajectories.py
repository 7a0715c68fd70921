"""Short runs from a kept model go the way that was recorded: loss of every batch, energies of every epoch, the gate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .walk import DATA, METHODS, differing, json_of, trajectory

pytestmark = pytest.mark.trains

RECORDED: dict[str, Any] = json_of(DATA / "trajectories.json")["methods"]


@pytest.mark.parametrize("method", METHODS)
def test_a_run_goes_the_way_that_was_recorded(old: Path, method: str) -> None:
    found, expected = trajectory(method), dict(RECORDED[method])
    assert differing(found.pop("gate"), expected.pop("gate"), rel=1e-3) == []
    assert differing(found, expected, rel=1e-4) == []


def test_the_record_is_of_runs_that_moved() -> None:
    """Every batch was seen, and the forgotten answers lost more of their probability than the retained ones."""
    assert list(RECORDED) == list(METHODS)
    for run in RECORDED.values():
        before, last = run["training"]["before"], run["training"]["history"][-1]
        assert (len(run["losses"]), run["training"]["steps"], len(run["training"]["history"])) == (24, 12, 4)
        lost = {side: last[f"eval_{side}_probability"] / before[f"{side}_probability"] for side in ("forget", "retain")}
        assert lost["forget"] < lost["retain"] < 1.0
