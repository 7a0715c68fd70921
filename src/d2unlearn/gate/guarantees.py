"""For which groups of requests the share of false refusals is guaranteed, by which rows (Mondrian conformal prediction). Pure.

A group is what the request's messages say (`groups`), or the file that its rows come from. Each group of requests has a
threshold of its own, at or above its conformal value and that of every file whose rows fall into it, so each promise holds by
itself. It is kept as a lead: how far the group's threshold lies below the highest of all, which is the gate's; a request's
score is raised by its group's lead, and one number decides. What sees token ids alone (transformers' own code, an engine) knows
no groups, adds no lead, and refuses no more than is promised. In a group that has too few questions nothing is promised; the
pooled value, that of the legitimate rows as they stand, judges it, or the highest score seen there, where that is higher.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from d2unlearn.gate.asked import AskedRequest, worst_of_each
from d2unlearn.gate.groups import REQUEST_GROUPS
from d2unlearn.schema import Interval
from d2unlearn.stats import Floats, conformal_rank, smallest_n

Promise = Literal["guaranteed", "too few", "unseen", "unstated"]
"""Of a group: what calibration saw of it is enough; it is too little; it saw nothing of it; the gate does not say."""


@dataclass(frozen=True)
class GroupGuarantee:
    """What is promised to one group. `n`: its questions; `needed`: how many a promise takes; `conformal`: the least threshold
    that keeps it, None where nothing is promised. `refused`: share of questions whose worst rendering lies above the threshold.
    `lead`: what is added to the scores of its requests before they are compared, 0 or more; `conformal` has it in it.
    """

    group: str
    n: int
    needed: int
    conformal: float | None
    refused: Interval | None = None
    lead: float = 0.0

    @property
    def said(self) -> str:
        """In words."""
        return (
            f"guaranteed by {self.n} questions"
            if self.conformal is not None
            else f"no guarantee: {self.n} of {self.needed} needed"
        )


def promise_of(group: str, groups: Sequence[GroupGuarantee]) -> Promise:
    """What the guarantees of a gate, `groups`, promise to a request of this group; gates of before 0.3 have none."""
    ours = next((each for each in groups if each.group == group), None)
    if not groups:
        return "unstated"
    if ours is None or not ours.n:
        return "unseen"
    return "too few" if ours.conformal is None else "guaranteed"


def conformal_value(scores: Floats, max_false_refusal: float, confidence: float | None, *, or_highest: bool = False) -> float:
    """The order statistic that a threshold must not lie below. Raises `GateError` for too few scores.

    or_highest: of too few the highest, where nothing is promised by it.
    """
    if or_highest and len(scores) < smallest_n(max_false_refusal, confidence):
        return float(scores.max())
    return float(np.sort(scores)[conformal_rank(len(scores), max_false_refusal, confidence) - 1])


def group_guarantees(
    calibration: Sequence[AskedRequest], scores: Floats, max_false_refusal: float, confidence: float | None, part: float = 1.0
) -> tuple[GroupGuarantee, ...]:
    """One for each group of requests, also those that no row fell into, then for each group of a file.

    part: so much of what a promise takes is enough, where a part of the rows stands for all; the highest score then counts.
    """
    needed = smallest_n(max_false_refusal, confidence)
    groups = dict.fromkeys([*REQUEST_GROUPS, *(each.group for each in calibration)])
    made = []
    for group in groups:
        worst = worst_in_group(calibration, scores, group)
        value = None
        if len(worst) >= max(part * needed, 1):
            value = conformal_value(worst, max_false_refusal, confidence, or_highest=part < 1)
        made.append(GroupGuarantee(group, len(worst), needed, value))
    return tuple(made)


def worst_in_group(asked: Sequence[AskedRequest], scores: Floats, group: str) -> Floats:
    """[n]: each question's highest score among its renderings in the group."""
    inside = np.array([each.group == group for each in asked], dtype=np.bool_)
    return np.array(list(worst_of_each([each for each in asked if each.group == group], scores[inside]).values()))
