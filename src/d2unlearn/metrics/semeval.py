"""SemEval-2025 Task 4's arithmetic, from shares to scores. Pure.

Source: `evaluate_generations.py`, which the task gave out with its data; the task's page (llmunlearningsemeval2025.github.io).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from d2unlearn.stats import harmonic_mean


def task_aggregate(gone: Sequence[float], kept: Sequence[float]) -> float:
    """Harmonic mean of 1 - each share that should be gone and of each that should be kept: 1 is best, 0 where one of them is 0.

    The task takes twelve: regurgitation and knowledge of three tasks, forgotten and retained. NaN where one is.
    """
    return harmonic_mean([*(1 - share for share in gone), *kept])


def membership_score(auc: float) -> float:
    """1 - 2 |AUC - 1/2|: 1 where a loss attack tells members from others as by chance, 0 where always or never."""
    return 1 - 2 * abs(auc - 0.5)


def final_score(aggregate: float, membership: float, mmlu: float) -> float:
    """The mean of the three, by which submissions were ranked. NaN where one is."""
    return float(np.mean([aggregate, membership, mmlu]))
