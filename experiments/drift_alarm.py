"""How often the drift alarm of `serve` rings without drift, and how soon it does with one. No model: scores are drawn.

Usage: python experiments/drift_alarm.py OUTPUT.json
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from d2unlearn.runtime import write_json
from d2unlearn.serving.drift import DRIFT_WINDOW, FALSE_ALARMS, JUMP, DriftWatch

RUNS = 400
REQUESTS = 5000
CALIBRATION = 260
LEVELS = (0.1, 0.05, 0.01)
DRIFTS: dict[str, Callable[[Random], float]] = {
    "half a standard deviation up": lambda rng: rng.gauss(0.5, 1),
    "one standard deviation up": lambda rng: rng.gauss(1, 1),
    "one standard deviation down": lambda rng: rng.gauss(-1, 1),
    "a tenth of requests forgotten": lambda rng: 9.0 if rng.random() < 0.1 else rng.gauss(0, 1),
    "twice the spread": lambda rng: rng.gauss(0, 2),
}
"""A request's score where calibration's is standard normal; the threshold is the 99 % point."""
THRESHOLD = 2.326


def highest(calibration: list[float], draw: Callable[[], float]) -> float:
    """The highest value of the evidence over so many requests."""
    watch, top = DriftWatch(calibration, THRESHOLD, false_alarms=1e-300), 1.0
    for _ in range(REQUESTS):
        watch.note(draw())
        top = max(top, watch.evidence)
    return top


def first_alarm(calibration: list[float], draw: Callable[[], float]) -> int | None:
    watch = DriftWatch(calibration, THRESHOLD)
    return next((number for number in range(1, REQUESTS + 1) if watch.note(draw())), None)


def simulated(seed: int) -> dict[str, Any]:
    rng = Random(seed)
    tops = [highest([rng.gauss(0, 1) for _ in range(CALIBRATION)], lambda: rng.gauss(0, 1)) for _ in range(RUNS)]
    found = {}
    for name, drift in DRIFTS.items():
        waits = [first_alarm([rng.gauss(0, 1) for _ in range(CALIBRATION)], lambda d=drift: d(rng)) for _ in range(RUNS // 10)]  # type: ignore[misc]
        rung = [wait for wait in waits if wait is not None]
        found[name] = {"found": len(rung) / len(waits), "median": median(rung) if rung else None}
    return {
        "runs": RUNS,
        "requests": REQUESTS,
        "calibration": CALIBRATION,
        "window": DRIFT_WINDOW,
        "jump": JUMP,
        "alarm of serve": FALSE_ALARMS,
        "rang": {str(a): sum(top >= 1 / a for top in tops) / RUNS for a in LEVELS},
        "drifts": found,
    }


if __name__ == "__main__":
    write_json(Path(sys.argv[1]), simulated(0))
