"""How well a score tells forget from retained requests. Higher scores should mean forgotten. Pure functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from itertools import product

import numpy as np
from numpy.typing import ArrayLike

from d2unlearn.schema import Better, EvaluatedSet, MetricResult
from d2unlearn.stats import Floats, auroc, fpr_at_tpr, ks_distance, several_bounds

Groups = Sequence[str] | None
"""Each example's group (an author, a document), None where each stands for itself."""

SEPARATION_DRAWS = 500
"""Draws for an interval."""
_STATISTICS: dict[str, tuple[Callable[[ArrayLike, ArrayLike], float], Better]] = {
    "auroc": (auroc, "higher"),
    "fpr_at_95_tpr": (fpr_at_tpr, "lower"),
    "ks_distance": (ks_distance, "higher"),
}
"""name: (statistic of (retained, forget) scores, which direction is good)."""


_SCORES = {"prompt_energy": "prompt_energy", "answer_energy": "answer_energy", "gate": "gate_score"}
"""What is compared, and the field of an example that holds it."""


def separation_of_sets(sets: Sequence[EvaluatedSet], seed: int, groups: Mapping[str, Groups]) -> list[MetricResult]:
    """Forget sets against retained sets: by prompt energy, by the true answer's energy, and by the gate's score.

    groups: of each set by its name.
    """
    metrics: list[MetricResult] = []
    forget_sets, retain_sets = ([evaluated for evaluated in sets if evaluated.kind == kind] for kind in ("forget", "retain"))
    for (label, field), forget, retain in product(_SCORES.items(), forget_sets, retain_sets):
        low, high = (np.array([getattr(e, field) for e in side.examples], dtype=np.float64) for side in (retain, forget))
        if not np.isnan([*low, *high]).all():
            sides = groups[retain.name], groups[forget.name]
            metrics += separation(f"{label}_{forget.name}_vs_{retain.name}", low, high, groups=sides, seed=seed)
    return metrics


def separation(
    name: str, retain: ArrayLike, forget: ArrayLike, *, groups: tuple[Groups, Groups] = (None, None), seed: int = 0
) -> list[MetricResult]:
    """Each statistic with a bootstrap interval over requests, or over groups of them where a side has `groups` (retained,
    forget); metrics are called `STATISTIC_NAME`.
    """
    (low, low_groups), (high, high_groups) = _scored(retain, groups[0]), _scored(forget, groups[1])
    n = len(low) + len(high)
    unscored = np.size(retain) + np.size(forget) - n
    counted, bounds = 0, [(math.nan, math.nan)] * len(_STATISTICS)
    if len(low) and len(high):
        functions = [partial(_of_drawn, function) for function, _ in _STATISTICS.values()]
        columns, labels = (("retain", low), ("forget", high)), {"retain": low_groups, "forget": high_groups}
        counted, bounds = n, several_bounds(functions, columns, labels, n_boot=SEPARATION_DRAWS, seed=seed)
    return [
        MetricResult(f"{statistic}_{name}", function(low, high), *interval, counted, unscored, better)
        for (statistic, (function, better)), interval in zip(_STATISTICS.items(), bounds, strict=True)
    ]


def _of_drawn(function: Callable[[ArrayLike, ArrayLike], float], drawn: Sequence[Floats]) -> float:
    return function(drawn[0], drawn[1])


def _scored(scores: ArrayLike, groups: Groups) -> tuple[Floats, Sequence[Hashable]]:
    """The scores that are numbers, and a group for each."""
    values = np.asarray(scores, dtype=np.float64)
    labels: Sequence[Hashable] = range(len(values)) if groups is None else groups
    kept = [label for value, label in zip(values, labels, strict=True) if not math.isnan(value)]
    return values[~np.isnan(values)], kept
