"""One rendering of one question, and what was read of the model's answer: what calibration counts. Pure.

Questions are counted, never renderings: a question's score in a group is that of its worst rendering there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from d2unlearn.gate.groups import REQUEST_GROUPS
from d2unlearn.gate.score import Score, request_scores
from d2unlearn.stats import Floats

PLAIN_FAMILY = "plain"
"""The family of a row as it stands in its file."""
Energies = Sequence[Sequence[float]]
"""Of each request the energies of its answer, position by position."""


@dataclass(frozen=True)
class AskedRequest:
    """`question`: its number, the same in all of its renderings. `group`: that of the request, or the file's (near, unrelated).

    `looks`: the energies of the request's answer, then of whatever else it is judged by; the highest score counts. `told`:
    whether the answer holds what was asked for, None where nothing says what that is. `request`: the request's own group where
    `group` is the file's.
    """

    question: int
    looks: tuple[tuple[float, ...], ...]
    group: str = REQUEST_GROUPS[0]
    family: str = PLAIN_FAMILY
    told: bool | None = None
    request: str | None = None

    @property
    def decided_as(self) -> str:
        """The group by whose threshold it is decided: the request's."""
        return self.request or (self.group if self.group in REQUEST_GROUPS else REQUEST_GROUPS[0])

    @property
    def as_it_is(self) -> bool:
        """A row of the file of legitimate requests, or of forgotten ones, as it stands there."""
        return self.family == PLAIN_FAMILY and self.group in REQUEST_GROUPS


def as_they_are(energies: Energies) -> list[AskedRequest]:
    """Questions that are asked in one way."""
    return [AskedRequest(number, (tuple(row),)) for number, row in enumerate(energies)]


def asked_scores(score: Score, asked: Sequence[AskedRequest]) -> Floats:
    """[N]: of each rendering the highest score among what it is judged by."""
    if not asked:
        return np.zeros(0)
    starts = np.cumsum([0, *(len(each.looks) for each in asked)])[:-1]
    return np.maximum.reduceat(request_scores(score, [look for each in asked for look in each.looks]), starts)


def with_leads(asked: Sequence[AskedRequest], scores: Floats, leads: Mapping[str, float]) -> Floats:
    """[N]: each score with the lead of its request's group, 0 where there is none."""
    return np.asarray(scores + np.array([leads.get(each.decided_as, 0.0) for each in asked]))


def worst_of_each(asked: Iterable[AskedRequest], scores: Floats) -> dict[int, float]:
    """The highest score of each question, by its number."""
    worst: dict[int, float] = {}
    for each, score in zip(asked, scores.tolist(), strict=True):
        worst[each.question] = max(worst.get(each.question, score), score)
    return worst


def weights_of(asked: Sequence[AskedRequest]) -> Floats:
    """[N], with sum 1: each question counts once, shared among its renderings."""
    counts: dict[int, int] = {}
    for each in asked:
        counts[each.question] = counts.get(each.question, 0) + 1
    return np.array([1 / (counts[each.question] * len(counts)) for each in asked])


def of_questions(asked: Sequence[AskedRequest], questions: Collection[int]) -> list[AskedRequest]:
    """Those of these questions, in order."""
    return [each for each in asked if each.question in questions]


def answered_requests(asked: Sequence[AskedRequest]) -> list[AskedRequest]:
    """Rows as they stand, and of their other renderings those in which the model tells what was asked for.

    A refusal in the place of a wrong answer takes nothing from anyone: what a typing mistake has made another person's name
    need not pass. A promise in other wordings is one for requests that are answered.
    """
    return [each for each in asked if each.family == PLAIN_FAMILY or each.told is not False]


def unanswered_families(asked: Sequence[AskedRequest], least: int = 5) -> Mapping[str, float]:
    """Families of wordings in which the model tells fewer than half of what it tells when asked as the row stands: the share.

    What is forgotten is nothing there that could be told, so such requests should not set a threshold. Families with fewer
    than `least` such questions are not judged.
    """
    knows = {each.question for each in asked if each.as_it_is and each.told}
    told: dict[str, list[bool]] = {}
    for each in asked:
        if each.question in knows and each.family != PLAIN_FAMILY and each.told is not None:
            told.setdefault(each.family, []).append(each.told)
    shares = {family: sum(answers) / len(answers) for family, answers in told.items() if len(answers) >= least}
    return {family: share for family, share in shares.items() if share < 0.5}
