"""By what a trial is chosen: knowledge on validation questions. No energy, no gate and no refusal enters it. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from d2unlearn.stats import harmonic_mean

RULE = (
    "harmonic mean of erased and kept on validation questions, in the raw weights: erased = 1 - the larger of extraction "
    "strength and answer probability on forgotten rows; kept = the smaller share of the original's extraction strength and "
    "answer probability that is left on retained rows that training never saw. For guards, which leave the weights alone, both "
    "are taken of what the guarded model says: ROUGE-L recall of its answers"
)


def validation_score(forget: Mapping[str, float], retain: Mapping[str, float], before: Mapping[str, float]) -> float:
    """The rule's score, 0 to 1. Arguments: metric -> mean, the same metrics in all three; `before`: the original's, retained.

    0 for a model that gives no numbers. Raises `ValueError` for other metrics on one side than on another.
    """
    if not set(forget) == set(retain) == set(before):
        raise ValueError(f"different metrics: {sorted(forget)}, {sorted(retain)}, {sorted(before)}")
    if any(math.isnan(value) for each in (forget, retain, before) for value in each.values()):
        return 0.0
    erased = 1 - max(forget.values())
    kept = min(min(1.0, value / max(before[name], 1e-12)) for name, value in retain.items())
    return harmonic_mean([erased, kept])


def best_trial(scores: Sequence[float]) -> int:
    """The number of the trial with the largest score, the first of equals."""
    return max(range(len(scores)), key=lambda number: (scores[number], -number))
