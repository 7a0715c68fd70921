"""Whether it shows that a model was trained on a text: membership inference, and what follows from it. Pure functions.

Every attack gives one score an example; a *higher* score means less likely a member, as a loss does. The attack's AUC
(`stats.auroc` of forgotten and held-out scores) is the chance that a held-out example scores above a forgotten one: 0.5 when
the two cannot be told apart, 1 when the forget set is plainly known, near 0 when it is plainly *less* known than text the model
never saw, which gives the unlearning away as well. The aim is the AUC of a model that never saw the forget set. Nothing to
score is NaN.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import ks_2samp

from d2unlearn.schema import Interval
from d2unlearn.stats import Floats, auroc, bootstrap_bounds, finite

MIN_K_SHARE = 0.4
"""Share of an answer's tokens that Min-K% and Min-K%++ look at (MUSE, open-unlearning)."""
SMALLEST_VARIANCE = 1e-6
"""nats^2; keeps Min-K%++ finite where the model is certain."""


def zlib_score(nll: float, text: str) -> float:
    """Mean NLL over the bytes that zlib needs for the text: repetitive text is no sign of membership.

    Source: Carlini et al. 2021.
    """
    return nll / len(zlib.compress(text.encode())) if text else math.nan


def min_k(nll: ArrayLike, share: float = MIN_K_SHARE) -> float:
    """Mean NLL of the `share` least likely tokens (at least one). nll: [n], nats. Source: Shi et al. 2023 (2310.16789)."""
    values = np.sort(np.asarray(nll, dtype=np.float64))[::-1]
    return float(values[: _count(len(values), share)].mean()) if len(values) else math.nan


def min_k_plus_plus(nll: ArrayLike, entropy: ArrayLike, variance: ArrayLike, share: float = MIN_K_SHARE) -> float:
    """Min-K% of the log-probabilities standardised by their mean and spread under the model at the same position.

    z = (log p - mean) / sqrt(variance) with mean = -entropy; the negative mean of the `share` lowest z. nll, entropy: [n] nats;
    variance: [n] nats^2, at least `SMALLEST_VARIANCE`. Source: Zhang et al. 2024 (2404.02936).
    """
    spread = np.sqrt(np.maximum(np.asarray(variance, dtype=np.float64), SMALLEST_VARIANCE))
    scores = np.sort((np.asarray(entropy, dtype=np.float64) - np.asarray(nll, dtype=np.float64)) / spread)
    return -float(scores[: _count(len(scores), share)].mean()) if len(scores) else math.nan


def membership_auc(
    forget: ArrayLike,
    never_seen: ArrayLike,
    *,
    groups: tuple[Sequence[Hashable], Sequence[Hashable]] | None = None,
    seed: int = 0,
) -> Interval:
    """An attack's AUC from its scores of forgotten rows and of rows that were never seen, with a bootstrap interval.

    Above 0.5: forgotten rows look like members; below: they look *less* known than what was never seen; at 0.5, and where a
    never-knew model has it, nothing tells unlearned from never seen. groups: of each row of the two, drawn whole; None: rows.
    `n` counts both sides; all NaN where one is empty. The two may be the same rows, scored by two models.
    """
    sides = [np.asarray(scores, dtype=np.float64) for scores in (forget, never_seen)]
    labels = groups or (range(len(sides[0])), range(len(sides[1])))
    n = [len(finite(side)) for side in sides]
    if not all(n):
        return Interval(math.nan, math.nan, math.nan, 0)
    columns = (("forget", sides[0]), ("never seen", sides[1]))
    bounds = bootstrap_bounds(_auroc_of, columns, {"forget": labels[0], "never seen": labels[1]}, seed=seed)
    return Interval(auroc(*sides), *bounds, sum(n))


def privleak(auc: float, reference_auc: float, *, epsilon: float = 0.0) -> float:
    """How far the chance of *not* telling members is from that of a model that never saw the forget set, in percent of it.

    ((1 - auc) - (1 - reference)) / (1 - reference + epsilon) * 100: 0 is right, negative: still known (under-unlearned),
    positive: conspicuously unknown. NaN where the reference's AUC is 1 and there is no `epsilon`. Source: MUSE (2407.06460).
    """
    missed, reference = 1 - auc, 1 - reference_auc
    return (missed - reference) / (reference + epsilon) * 100 if reference + epsilon else math.nan


def forget_quality(ratios: ArrayLike, reference: ArrayLike, *, method: str = "auto") -> float:
    """p-value of the Kolmogorov-Smirnov test that the truth ratios are those of a model that never saw the forget set.

    Near 1: cannot be told apart; below 0.05: they differ. Takes every question for independent, which an author's twenty are
    not: read it beside the KS distance. NaN when a side is empty. Source: TOFU (2401.06121).
    """
    ours, theirs = finite(ratios), finite(reference)
    return float(ks_2samp(ours, theirs, method=method).pvalue) if len(ours) and len(theirs) else math.nan


def _auroc_of(sides: Sequence[Floats]) -> float:
    return auroc(sides[0], sides[1])


def _count(n: int, share: float) -> int:
    return max(1, int(n * share))
