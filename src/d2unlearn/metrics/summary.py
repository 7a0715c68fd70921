"""The metrics of a set of examples: their names, which direction is good, and the mean with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence

from d2unlearn.schema import Better, Example, Kind, MetricResult
from d2unlearn.stats import binomial_interval, bootstrap_interval

LIKELIHOOD_METRICS = ("extraction_strength", "exact_memorization", "answer_probability")
STAYED_METRIC, KL_METRIC = "exact_memorization_without_end", "kl_from_original"
"""Of answers that should stay: greedy tokens right, and KL(original || model) a token, nats; both without the end token."""
LOGIT_METRICS = ("mean_logit", "centred_energy", "entropy")
"""What stands beside every energy: means over an answer's positions, nats (`level_shift.LogitShape`)."""
GENERATED_METRICS = ("rouge_l_recall", "leak_rate", "token_entropy")
GUARDED_METRICS = ("guarded_rouge_l_recall", "guarded_leak_rate", "guarded_refusal_rate")
BETTER_ON_FORGET: dict[str, Better] = {
    "token_entropy": "higher",
    "refusal_rate": "higher",
    "guarded_refusal_rate": "higher",
    KL_METRIC: "neither",
    **dict.fromkeys(LOGIT_METRICS, "neither"),
}
"""Metrics that are not better lower on a set that should be gone."""
BETTER_ON_RETAIN: dict[str, Better] = {
    "repetition": "lower",
    "refusal_rate": "lower",
    "guarded_refusal_rate": "lower",
    KL_METRIC: "lower",
    **dict.fromkeys(LOGIT_METRICS, "neither"),
}
"""Metrics that are not better higher on a set to keep: a refusal there is one too many."""


def set_metric(name: str, kind: Kind, values: Sequence[float], groups: Sequence[str] | None, seed: int) -> MetricResult:
    """Mean of one value an example with a bootstrap interval, over `groups` of examples where given. NaN: not scored.

    A share of none or all has the exact binomial interval.
    """
    interval = bootstrap_interval(values, groups=groups, seed=seed)
    if name.endswith("_rate") and interval.n and interval.value in (0.0, 1.0):  # draws of equal values are all the same
        interval = binomial_interval(round(interval.value * interval.n), interval.n)
    unscored = sum(math.isnan(value) for value in values)
    better = BETTER_ON_FORGET.get(name, "lower") if kind == "forget" else BETTER_ON_RETAIN.get(name, "higher")
    return MetricResult(name, *interval, unscored, better, "nats" if name in (KL_METRIC, *LOGIT_METRICS) else "")


def groups_of(examples: Sequence[Example]) -> list[str] | None:
    """Each example's group; None unless all have one, and where all have the same: of one group no spread can be told."""
    groups = [example.group for example in examples]
    several = len(set(groups)) > 1 and None not in groups
    return [str(group) for group in groups] if several else None
