"""Short runs from a kept model go the way that was recorded: loss of every batch, energies of every epoch, the gate.

Gates were recorded again when scores and thresholds began to be chosen otherwise (`gates_recorded_at`); the runs were not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from d2unlearn.stats import harmonic_mean

from .walk import DATA, METHODS, differing, json_of, trajectory

pytestmark = pytest.mark.trains

RECORDED: dict[str, Any] = json_of(DATA / "trajectories.json")["methods"]


def as_recorded(found: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    """What was written of a look then: those keys, and the selection as it was defined, from the same numbers.

    Kept was the retained answers' probability over what it had been before; it is what stayed of their tokens since.
    """
    start = found["training"]["before"]["retain_probability"]

    def look(now: dict[str, float], then: dict[str, float]) -> dict[str, float]:
        prefix = "eval_" if "eval_selection" in then else ""
        kept = min(1.0, now[f"{prefix}retain_probability"] / start)
        selection = harmonic_mean([1 - now[f"{prefix}forget_probability"], kept, now[f"{prefix}auroc"]])
        return {key: now[key] for key in then} | {f"{prefix}selection": selection}

    training, then = found["training"], expected["training"]
    history = [look(*pair) for pair in zip(training["history"], then["history"], strict=True)]
    return {**found, "training": {**training, "before": look(training["before"], then["before"]), "history": history}}


@pytest.mark.parametrize("method", METHODS)
def test_a_run_goes_the_way_that_was_recorded(old: Path, method: str) -> None:
    found, expected = trajectory(method), dict(RECORDED[method])
    assert differing(found.pop("gate"), expected.pop("gate"), rel=1e-3) == []
    assert differing(as_recorded(found, expected), expected, rel=1e-4) == []


def test_the_record_is_of_runs_that_moved() -> None:
    """Every batch was seen, and the forgotten answers lost more of their probability than the retained ones."""
    assert list(RECORDED) == list(METHODS)
    for run in RECORDED.values():
        before, last = run["training"]["before"], run["training"]["history"][-1]
        assert (len(run["losses"]), run["training"]["steps"], len(run["training"]["history"])) == (24, 12, 4)
        lost = {side: last[f"eval_{side}_probability"] / before[f"{side}_probability"] for side in ("forget", "retain")}
        assert lost["forget"] < lost["retain"] < 1.0
