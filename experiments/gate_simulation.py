"""A thousand calibrations by group, on scores drawn at random: false refusals in each group beside what is promised.

Usage: python experiments/gate_simulation.py [OUTPUT.json]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from d2unlearn.gate.simulation import SIMULATED_GROUPS, simulated_shares
from d2unlearn.runtime import write_json
from d2unlearn.stats import smallest_n

CALIBRATIONS = 1000
SETTINGS = (
    {"max_false_refusal": 0.01, "confidence": None, "sizes": (260, 260, 260, 120, 99)},
    {"max_false_refusal": 0.01, "confidence": 0.9, "sizes": (260, 260, 260, 230, 299)},
    {"max_false_refusal": 0.05, "confidence": None, "sizes": (260, 260, 260, 40, 19)},
    {"max_false_refusal": 0.01, "confidence": None, "sizes": (260, 260, 260, 40, 98)},
)


def simulated(sizes: tuple[int, ...], max_false_refusal: float, confidence: float | None) -> dict[str, Any]:
    shares = simulated_shares(sizes, CALIBRATIONS, max_false_refusal, confidence=confidence)
    needed = smallest_n(max_false_refusal, confidence)
    groups = {
        group: {
            "questions": size,
            "guaranteed": size >= needed,
            "mean_refused": float(of_group.mean()),
            "standard_error": float(of_group.std() / np.sqrt(CALIBRATIONS)),
            "calibrations_above": float((of_group > max_false_refusal).mean()),
        }
        for group, size, of_group in zip(SIMULATED_GROUPS, sizes, shares.T, strict=True)
    }
    return {"max_false_refusal": max_false_refusal, "confidence": confidence, "needed": needed, "groups": groups}


def main() -> None:
    output = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent / "results" / "gate_simulation.json"
    write_json(output, {"calibrations": CALIBRATIONS, "runs": [simulated(**setting) for setting in SETTINGS]})
    print(output)


if __name__ == "__main__":
    main()
