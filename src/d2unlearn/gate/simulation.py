"""Calibrations by groups on scores drawn at random: whether each group's promise is kept, where the truth is known. Pure.

A question has a score of its own, and each group moves and stretches it in its own way: a system message shifts, a conversation
spreads, near rows lie high. Forget rows lie amid the highest of them, so that the raise is tempted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from d2unlearn.gate.asked import AskedRequest
from d2unlearn.gate.calibrate import Scored, set_threshold
from d2unlearn.gate.groups import REQUEST_GROUPS
from d2unlearn.stats import Floats

SIMULATED_GROUPS = (*REQUEST_GROUPS, "near", "unrelated")
_SHIFT, _STRETCH = (0.0, 1.5, 2.5, 3.0, -2.0), (1.0, 1.0, 2.0, 1.0, 3.0)
_RENDERINGS = (2, 3, 2, 1, 1)
"""Of a question in each group; the worst counts."""


def simulated_shares(
    sizes: Sequence[int],
    calibrations: int,
    max_false_refusal: float,
    *,
    confidence: float | None = None,
    forget: int = 60,
    fresh: int = 2000,
    seed: int = 0,
) -> Floats:
    """[calibrations, groups]: the share of `fresh` questions of each group that are refused.

    sizes: calibration questions of the groups that are simulated, the first of `SIMULATED_GROUPS`.
    """
    rng = np.random.default_rng(seed)
    return np.array([_shares(rng, sizes, max_false_refusal, confidence, forget, fresh) for _ in range(calibrations)])


def _shares(
    rng: np.random.Generator, sizes: Sequence[int], alpha: float, confidence: float | None, n_forget: int, fresh: int
) -> list[float]:
    asked: list[AskedRequest] = []
    scores: list[Floats] = []
    first = 0
    for group, size in enumerate(sizes):
        drawn = _drawn(rng, group, size)
        name, times = SIMULATED_GROUPS[group], _RENDERINGS[group]
        family = "plain" if group in (0, 3, 4) else "other"
        asked += [AskedRequest(first + question, (), name, family) for question in range(size) for _ in range(times)]
        scores.append(drawn.ravel())
        first += 0 if group < len(REQUEST_GROUPS) - 1 else size  # the same rows in every group of requests
    retained = Scored(asked, np.concatenate(scores))
    forgotten = Scored(
        [AskedRequest(question, ()) for question in range(n_forget)], rng.normal(rng.uniform(2, 12), 2, n_forget)
    )
    setting = set_threshold(retained, forgotten, alpha, confidence)
    leads = [setting.leads.get(SIMULATED_GROUPS[group], 0.0) for group in range(len(sizes))]
    found = [_drawn(rng, group, fresh).max(axis=1) + lead for group, lead in enumerate(leads)]
    return [float((new > setting.threshold).mean()) for new in found]


def _drawn(rng: np.random.Generator, group: int, questions: int) -> Floats:
    """[questions, renderings]: scores with a part in common among a question's renderings, and heavy tails."""
    own, more = rng.standard_t(5, questions), rng.standard_t(5, (questions, _RENDERINGS[group]))
    return np.asarray(_SHIFT[group] + _STRETCH[group] * (own[:, np.newaxis] + 0.7 * more))
