"""A thousand calibrations on scores drawn at random: false refusals beside what is promised, over all requests and by group.

Usage: python experiments/gate_simulation.py [OUTPUT.json]     (minutes; otherwise benchmarks/results/gate/simulation.json)
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from d2unlearn.gate.simulation import SIMULATED_GROUPS, simulated_shares
from d2unlearn.runtime import write_json
from d2unlearn.stats import Floats, binomial_interval, bootstrap_interval, smallest_n

OUTPUT = Path(__file__).parent.parent / "benchmarks" / "results" / "gate" / "simulation.json"
CALIBRATIONS = 1000
FRESH = 5000
"""Questions of a group that each calibration's threshold is tried on."""
FORGET = 60
SETTINGS: tuple[dict[str, Any], ...] = (
    {"max_false_refusal": 0.01, "confidence": None, "forget": 0, "sizes": (99,)},
    {"max_false_refusal": 0.01, "confidence": None, "forget": FORGET, "sizes": (99,)},
    {"max_false_refusal": 0.01, "confidence": 0.9, "forget": 0, "sizes": (230,)},
    {"max_false_refusal": 0.01, "confidence": None, "forget": FORGET, "sizes": (260, 260, 260, 120, 99)},
    {"max_false_refusal": 0.01, "confidence": 0.9, "forget": FORGET, "sizes": (260, 260, 260, 230, 299)},
    {"max_false_refusal": 0.05, "confidence": None, "forget": FORGET, "sizes": (260, 260, 260, 40, 19)},
    {"max_false_refusal": 0.01, "confidence": None, "forget": FORGET, "sizes": (260, 260, 260, 40, 98)},
)


def simulated(sizes: tuple[int, ...], max_false_refusal: float, confidence: float | None, forget: int) -> dict[str, Any]:
    """One setting: its promise, and what came of it in each group and over requests from all groups in equal parts."""
    shares = simulated_shares(sizes, CALIBRATIONS, max_false_refusal, confidence=confidence, forget=forget, fresh=FRESH)
    needed = smallest_n(max_false_refusal, confidence)
    groups = {
        group: {"questions": size, "guaranteed": size >= needed, **refused(of_group, max_false_refusal)}
        for group, size, of_group in zip(SIMULATED_GROUPS, sizes, shares.T, strict=False)
    }
    return {
        "max_false_refusal": max_false_refusal,
        "confidence": confidence,
        "forget": forget,
        "needed": needed,
        "groups": groups,
        "all": refused(shares.mean(axis=1), max_false_refusal),
    }


def refused(shares: Floats, rate: float) -> dict[str, list[float]]:
    """The mean share refused and the share of calibrations above the rate, each with its 95% interval."""
    above = binomial_interval(int((shares > rate).sum()), len(shares))
    return {"refused": list(bootstrap_interval(shares)[:3]), "above": list(above[:3])}


def main() -> None:
    output = Path(sys.argv[1]) if len(sys.argv) > 1 else OUTPUT
    runs = [simulated(**setting) for setting in SETTINGS]
    write_json(output, {"calibrations": CALIBRATIONS, "fresh": FRESH, "runs": runs})
    print(output)


if __name__ == "__main__":
    main()
