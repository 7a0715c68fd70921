"""How well a score tells forget from retained requests. Higher scores should mean forgotten. Pure functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from d2unlearn.schema import EvaluatedSet, Interval, Metric
from d2unlearn.stats import auroc, fpr_at_tpr, ks_distance

STATISTICS: dict[str, tuple[Callable[[Sequence[float], Sequence[float]], float], bool]] = {
    "auroc": (auroc, True),
    "fpr_at_95_tpr": (fpr_at_tpr, False),
    "ks_distance": (ks_distance, True),
}
"""name: (statistic of (retained, forget) scores, whether higher is better)."""


INDICES = {"prompt_energy": "prompt_energy", "answer_energy": "answer_energy", "gate": "gate_score"}
"""What is compared, and the field of an example that holds it."""


def separations(sets: Sequence[EvaluatedSet], seed: int) -> list[Metric]:
    """Forget sets against retained sets: by prompt energy, by the true answer's energy, and by the gate's score."""
    found: list[Metric] = []
    for label, attribute in INDICES.items():
        for forget in (s for s in sets if s.kind == "forget"):
            for retain in (s for s in sets if s.kind == "retain"):
                low, high = ([_number(getattr(e, attribute)) for e in s.examples] for s in (retain, forget))
                if all(math.isnan(v) for v in (*low, *high)):
                    continue
                found += separation(f"{label}_{forget.name}_vs_{retain.name}", low, high, seed=seed)
    return found


def separation(name: str, retain: Sequence[float], forget: Sequence[float], *, seed: int = 0) -> list[Metric]:
    """Each statistic with a bootstrap interval over requests; metrics are called `STATISTIC_NAME`."""
    kept = [[s for s in side if not math.isnan(s)] for side in (retain, forget)]
    unscored = len(retain) + len(forget) - len(kept[0]) - len(kept[1])
    metrics = []
    for statistic, (function, higher) in STATISTICS.items():
        interval = _bootstrap(function, *kept, seed=seed)
        metrics.append(Metric(f"{statistic}_{name}", *interval, unscored, "higher" if higher else "lower"))
    return metrics


def _bootstrap(
    function: Callable[[Sequence[float], Sequence[float]], float],
    retain: list[float],
    forget: list[float],
    *,
    seed: int,
    draws: int = 500,
) -> Interval:
    value = function(retain, forget)
    if math.isnan(value):
        return Interval(math.nan, math.nan, math.nan, 0)
    rng = np.random.default_rng(seed)
    low, high = np.asarray(retain), np.asarray(forget)
    drawn = [function(rng.choice(low, len(low)).tolist(), rng.choice(high, len(high)).tolist()) for _ in range(draws)]
    bounds = np.quantile(drawn, [0.025, 0.975])
    return Interval(value, float(bounds[0]), float(bounds[1]), len(low) + len(high))


def _number(value: float | None) -> float:
    return math.nan if value is None else value
