"""How well a score tells forget from retained requests. Higher scores should mean forgotten. Pure functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from d2unlearn.schema import EvaluatedSet, Interval, MetricResult
from d2unlearn.stats import Floats, auroc, bootstrap_bounds, fpr_at_tpr, ks_distance

Groups = Sequence[str] | None
"""Each example's group (an author, a document), None where each stands for itself."""

_STATISTICS: dict[str, tuple[Callable[[ArrayLike, ArrayLike], float], bool]] = {
    "auroc": (auroc, True),
    "fpr_at_95_tpr": (fpr_at_tpr, False),
    "ks_distance": (ks_distance, True),
}
"""name: (statistic of (retained, forget) scores, whether higher is better)."""


_SCORES = {"prompt_energy": "prompt_energy", "answer_energy": "answer_energy", "gate": "gate_score"}
"""What is compared, and the field of an example that holds it."""


def separation_of_sets(sets: Sequence[EvaluatedSet], seed: int, groups: Mapping[str, Groups]) -> list[MetricResult]:
    """Forget sets against retained sets: by prompt energy, by the true answer's energy, and by the gate's score.

    groups: of each set by its name.
    """
    found: list[MetricResult] = []
    for label, attribute in _SCORES.items():
        for forget in (s for s in sets if s.kind == "forget"):
            for retain in (s for s in sets if s.kind == "retain"):
                low, high = ([_number(getattr(e, attribute)) for e in s.examples] for s in (retain, forget))
                if all(math.isnan(v) for v in (*low, *high)):
                    continue
                name, sides = f"{label}_{forget.name}_vs_{retain.name}", (groups[retain.name], groups[forget.name])
                found += separation(name, low, high, groups=sides, seed=seed)
    return found


def separation(
    name: str,
    retain: Sequence[float],
    forget: Sequence[float],
    *,
    groups: tuple[Groups, Groups] = (None, None),
    seed: int = 0,
) -> list[MetricResult]:
    """Each statistic with a bootstrap interval over requests, or over groups of them where a side has `groups` (retained,
    forget); metrics are called `STATISTIC_NAME`.
    """
    sides = [_scored(scores, labels) for scores, labels in zip((retain, forget), groups, strict=True)]
    unscored = len(retain) + len(forget) - sum(len(scores) for scores, _ in sides)
    metrics = []
    for statistic, (function, higher) in _STATISTICS.items():
        interval = _bootstrap(function, *sides, seed=seed)
        metrics.append(MetricResult(f"{statistic}_{name}", *interval, unscored, "higher" if higher else "lower"))
    return metrics


def _bootstrap(
    function: Callable[[ArrayLike, ArrayLike], float],
    retain: tuple[Floats, Sequence[Hashable]],
    forget: tuple[Floats, Sequence[Hashable]],
    *,
    seed: int,
    draws: int = 500,
) -> Interval:
    (low, low_groups), (high, high_groups) = retain, forget
    value = function(low, high)
    if math.isnan(value):
        return Interval(math.nan, math.nan, math.nan, 0)
    columns, groups = (("retain", low), ("forget", high)), {"retain": low_groups, "forget": high_groups}
    bounds = bootstrap_bounds(lambda drawn: function(*drawn), columns, groups, n_boot=draws, seed=seed)
    return Interval(value, *bounds, len(low) + len(high))


def _scored(scores: Sequence[float], groups: Groups) -> tuple[Floats, Sequence[Hashable]]:
    """The scores that are numbers, and a group for each."""
    labels: Sequence[Hashable] = range(len(scores)) if groups is None else groups
    kept = [(score, label) for score, label in zip(scores, labels, strict=True) if not math.isnan(score)]
    return np.array([score for score, _ in kept], dtype=np.float64), [label for _, label in kept]


def _number(value: float | None) -> float:
    return math.nan if value is None else value
