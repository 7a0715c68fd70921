"""From the energies of held-out answers to a threshold with a guarantee. Pure: numbers in, numbers out.

    validation   retained requests: choose (`choice`) and standardise the score
    calibration  retained requests: the threshold, an order statistic of their scores (split conformal prediction)
    forget       requests to refuse, if any: some help to choose the score, the others may raise the threshold and tell how many
                 are missed

Forget requests cannot break the guarantee: the calibration scores are exchangeable with a fresh retained request's, since
nothing that the score depends on has seen either; and the threshold only ever moves up from the conformal value, which can
only refuse fewer.

The raise. For a threshold t, errors(t) = share of retained questions above t + share of forget questions at or below t, a
question being shared among its renderings. It is constant between neighbouring scores; of the gaps at or above the conformal
value whose errors are within one standard error of the fewest, the widest is taken, and its middle is the threshold. By the
exact fewest, one row decides: on the quickstart's world one put the threshold 0.03 nats below the lowest forgotten score.
Staying at the conformal value where a raise spares nothing measurable was tried: where every calibration prompt is answered
with confidence it lies so low that retained questions in another wording are refused (docs/log.md).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from d2unlearn.errors import GateError
from d2unlearn.gate.asked import AskedRequest, asked_scores, weights_of, with_leads
from d2unlearn.gate.choice import Candidate, Choice
from d2unlearn.gate.families import FamilyRates, family_rates
from d2unlearn.gate.groups import REQUEST_GROUPS
from d2unlearn.gate.guarantees import GroupGuarantee, conformal_value, group_guarantees, worst_in_group
from d2unlearn.gate.score import Bools, Indices, Score
from d2unlearn.schema import Interval
from d2unlearn.stats import Floats, binomial_interval, conformal_rank

N_FOLDS = 5
CHOOSING_FOLDS = 3
"""Of so many folds of forget requests one chooses the score."""


@dataclass(frozen=True)
class Calibration:
    """A threshold and everything that was measured on the way to it.

    `rank`: the order statistic (1 = smallest) behind `conformal_threshold`, among the calibration rows as they stand in their
    file, whose scores are `calibration_scores`; `groups`: the guarantees of groups, each with a conformal value and a lead
    of its own; all scores here have their leads in them.
    `forget_scores`: likewise of forget rows. `miss_rate`: of forget rows as they stand that did not choose the score,
    cross-fitted; None without any. `grouped`: whether folds kept groups together; `apart`: whether other forget rows chose the
    score than raised the threshold. `validation_false_refusal` is optimistic by a little, for rows that chose the score.
    `families`: on held-out rows. `left_out`: families that forget rows were not asked in, for the model answers too few
    legitimate rows there, with the share that it does.
    """

    name: str
    score: Score
    threshold: float
    conformal_threshold: float
    rank: int
    candidates: tuple[Candidate, ...]
    validation_false_refusal: Interval
    calibration_false_refusal: Interval
    miss_rate: Interval | None
    grouped: bool
    calibration_scores: tuple[float, ...]
    forget_scores: tuple[float, ...]
    reason: str = ""
    apart: bool = False
    groups: tuple[GroupGuarantee, ...] = ()
    families: tuple[FamilyRates, ...] = ()
    left_out: Mapping[str, float] = field(default_factory=dict)


def calibrate(
    choice: Choice,
    validation: Sequence[AskedRequest],
    calibration: Sequence[AskedRequest],
    forget: Sequence[AskedRequest] = (),
    labels: Sequence[Hashable] | None = None,
    *,
    choosing: frozenset[int] = frozenset(),
    max_false_refusal: float = 0.01,
    confidence: float | None = None,
    n_folds: int = N_FOLDS,
    seed: int = 0,
) -> Calibration:
    """Set the chosen score's threshold so that at most `max_false_refusal` of retained requests lie above, and measure it.

    `labels`: for each forget question which group (author, document) it belongs to; None: rows are taken as independent.
    `choosing`: forget questions that chose the score; they stay out of the rest, unless nothing would be left. Raises
    `GateError` when there are too few calibration rows for the rate asked for, none for validation, or energies that are not
    finite.
    """
    rank = conformal_rank(sum(each.as_it_is for each in calibration), max_false_refusal, confidence)
    check_energies(validation, calibration, forget)
    others = [each for each in forget if each.question not in choosing]
    setting = Scored.of(choice.score, calibration), Scored.of(choice.score, others or forget)
    rates = max_false_refusal, confidence
    found = set_threshold(*setting, *rates)
    refused, caught = _cross_fitted(*setting, *rates, labels, n_folds, seed)
    retained = setting[0].moved(found.leads)
    plain_forget = Scored.of(choice.score, forget).moved(found.leads).plain_scores
    return Calibration(
        name=choice.name,
        score=choice.score,
        threshold=found.threshold,
        conformal_threshold=found.pooled,
        rank=rank,
        candidates=choice.candidates,
        validation_false_refusal=_share(Scored.of(choice.score, validation).moved(found.leads).plain_scores > found.threshold),
        calibration_false_refusal=_share(retained.plain_scores > found.threshold),
        miss_rate=_share(~caught[setting[1].plain]) if len(setting[1].plain) else None,
        grouped=_usable(labels),
        calibration_scores=tuple(retained.plain_scores.tolist()),
        forget_scores=tuple(plain_forget.tolist()),
        reason=choice.reason,
        apart=bool(choosing) and bool(others),
        groups=tuple(_with_share(group, retained, found.threshold) for group in found.groups),
        families=family_rates(setting[0].asked, refused, setting[1].asked, caught),
    )


def raised(
    conformal: float,
    retained: Floats,
    forget: Floats,
    weights: tuple[Floats, Floats] | None = None,
    n: tuple[int, int] | None = None,
) -> float:
    """The threshold with forget scores taken into account: never below `conformal`. See the head of this file.

    weights: of each score, sums 1 (None: all alike). n: questions behind them (None: one a score).
    """
    if not len(forget):
        return conformal
    n_retained, n_forget = n or (len(retained), len(forget))
    w_retained, w_forget = weights or (np.full(len(retained), 1 / max(len(retained), 1)), np.full(len(forget), 1 / len(forget)))
    edges = np.unique(np.concatenate([retained, forget, [conformal]]))
    edges = edges[(edges >= conformal) & np.isfinite(edges)]
    if len(edges) < 2:
        return conformal
    lower = edges[:-1]
    above, missed = _share_above(retained, w_retained, lower), 1 - _share_above(forget, w_forget, lower)
    errors, fewest = above + missed, int(np.argmin(above + missed))
    error = math.hypot(_share_error(above[fewest], n_retained), _share_error(missed[fewest], n_forget))
    widths = np.where(errors <= errors[fewest] + error + 1e-12, np.diff(edges), -1.0)
    best = int(np.argmax(widths))
    return float((edges[best] + edges[best + 1]) / 2)


def _share_above(scores: Floats, weights: Floats, thresholds: Floats) -> Floats:
    """Weight of the scores above each threshold."""
    order = np.argsort(scores)
    passed = np.concatenate([[0.0], np.cumsum(weights[order])])
    return np.asarray(passed[-1] - passed[np.searchsorted(scores[order], thresholds, side="right")])


def _share_error(share: float, n: int) -> float:
    """Standard error of a share of n questions, with one more on either side: none of n is no certainty."""
    shrunk = (share * n + 1) / (n + 2)
    return math.sqrt(shrunk * (1 - shrunk) / n) if n else 0.0


def choosing_questions(n: int, labels: Sequence[Hashable] | None, seed: int) -> frozenset[int]:
    """Forget questions (numbers below n) that choose the score and set no threshold: a third, in whole groups; all where they
    cannot be parted.
    """
    folds = _dealt(range(n), labels, CHOOSING_FOLDS, seed)
    return frozenset(folds[0] if len(folds) == CHOOSING_FOLDS else range(n))


def check_energies(
    validation: Sequence[AskedRequest], calibration: Sequence[AskedRequest], forget: Sequence[AskedRequest]
) -> None:
    """Raises `GateError` for no validation rows, and for energies that are not finite."""
    if not validation:
        raise GateError("no validation prompts: give more retained prompts, a share of them chooses the score")
    for kind, asked in (("retained", validation), ("retained", calibration), ("forget", forget)):
        if not all(math.isfinite(energy) for each in asked for look in each.looks for energy in look):
            raise GateError(f"the model's energies on {kind} prompts are not finite numbers: the model is broken")


@dataclass(frozen=True)
class Scored:
    """Renderings with their scores."""

    asked: Sequence[AskedRequest]
    scores: Floats

    @classmethod
    def of(cls, score: Score, asked: Sequence[AskedRequest]) -> Scored:
        return cls(asked, asked_scores(score, asked))

    @property
    def plain(self) -> Bools:
        """[N]: which are rows as they stand."""
        return np.array([each.as_it_is for each in self.asked], dtype=np.bool_)

    @property
    def plain_scores(self) -> Floats:
        return self.scores[self.plain]

    @property
    def questions(self) -> int:
        return len({each.question for each in self.asked})

    def moved(self, leads: Mapping[str, float]) -> Scored:
        """With the leads of the requests' groups in the scores."""
        return Scored(self.asked, with_leads(self.asked, self.scores, leads))

    def decided_as(self, group: str) -> Scored:
        """The requests of a group."""
        return self.part(np.array([each.decided_as == group for each in self.asked], dtype=np.bool_))

    def part(self, rows: Bools) -> Scored:
        """Those of these rows, [N]."""
        return Scored([each for each, kept in zip(self.asked, rows, strict=True) if kept], self.scores[rows])


@dataclass(frozen=True)
class GroupedThreshold:
    """One threshold and the leads in `groups`, which decide. `pooled`: rows' conformal value as they stand, with leads."""

    pooled: float
    threshold: float
    groups: tuple[GroupGuarantee, ...]

    @property
    def leads(self) -> dict[str, float]:
        """By group of requests."""
        return {group.group: group.lead for group in self.groups}

    def refused(self, scored: Scored) -> Bools:
        """[N]: which renderings lie above the threshold."""
        return np.asarray(scored.moved(self.leads).scores > self.threshold)


def set_threshold(
    retained: Scored, forget: Scored, max_false_refusal: float, confidence: float | None, *, part: float = 1.0
) -> GroupedThreshold:
    """Each group of requests by itself, then all on one scale. part: of what is needed is enough."""
    rates = max_false_refusal, confidence
    pooled = conformal_value(retained.plain_scores, *rates, or_highest=part < 1)
    groups = group_guarantees(retained.asked, retained.scores, *rates, part)
    own: dict[str, float] = {}
    for group in REQUEST_GROUPS:
        ours = retained.decided_as(group)
        if ours.asked:
            own[group] = _own_threshold(group, groups, ours, forget.decided_as(group), pooled)
    highest = max(own.values())
    leads: dict[str, float] = {group: highest - own.get(group, highest) for group in REQUEST_GROUPS}
    moved = retained.moved(leads)
    together = conformal_value(moved.plain_scores, *rates, or_highest=part < 1)
    again = group_guarantees(moved.asked, moved.scores, *rates, part)
    led = tuple(replace(group, lead=leads.get(group.group, 0.0)) for group in again)
    return GroupedThreshold(together, max(highest, together), led)


def _own_threshold(group: str, groups: Sequence[GroupGuarantee], retained: Scored, forget: Scored, pooled: float) -> float:
    """Of one group of requests: at or above its own conformal value and those of the files whose rows are among them."""
    inside = {each.group for each in retained.asked} | {group}
    values = {each.group: each.conformal for each in groups if each.group in inside and each.conformal is not None}
    floor = max(values.values(), default=pooled)
    if group not in values:
        floor = max(floor, pooled, float(retained.scores.max()))
    weights = weights_of(retained.asked), weights_of(forget.asked)
    return raised(floor, retained.scores, forget.scores, weights, (retained.questions, forget.questions))


def _cross_fitted(
    retained: Scored,
    forget: Scored,
    max_false_refusal: float,
    confidence: float | None,
    labels: Sequence[Hashable] | None,
    n_folds: int,
    seed: int,
) -> tuple[Bools, Bools]:
    """Which retained and which forget renderings lie above a threshold that nothing of their fold has set."""
    above = np.zeros(len(retained.asked), dtype=np.bool_), np.zeros(len(forget.asked), dtype=np.bool_)
    folds = _folds(retained.asked, None, n_folds, seed), _folds(forget.asked, labels, n_folds, seed)
    for fold in range(n_folds):
        ours, theirs = folds[0] == fold, folds[1] == fold
        rest = retained.part(~ours) if (~ours & retained.plain).any() else retained
        setting = set_threshold(rest, forget.part(~theirs), max_false_refusal, confidence, part=0.5)
        above[0][ours], above[1][theirs] = setting.refused(retained.part(ours)), setting.refused(forget.part(theirs))
    return above


def _folds(asked: Sequence[AskedRequest], labels: Sequence[Hashable] | None, n_folds: int, seed: int) -> Indices:
    """[N]: the fold of each rendering's question."""
    fold_of = {
        q: fold for fold, dealt in enumerate(_dealt({each.question for each in asked}, labels, n_folds, seed)) for q in dealt
    }
    return np.array([fold_of[each.question] for each in asked], dtype=np.int64)


def _dealt(questions: Iterable[int], labels: Sequence[Hashable] | None, n_folds: int, seed: int) -> list[list[int]]:
    """Questions in folds: whole groups, shuffled and dealt out in turn; questions by themselves without usable groups."""
    label_of = {q: str(labels[q]) if labels is not None and _usable(labels) else str(q) for q in sorted(questions)}
    names = sorted(set(label_of.values()))
    order = np.random.default_rng(seed).permutation(len(names))
    fold_of = {names[group]: turn % n_folds for turn, group in enumerate(order)}
    folds = [[q for q, label in label_of.items() if fold_of[label] == fold] for fold in range(n_folds)]
    return [fold for fold in folds if fold]


def _with_share(group: GroupGuarantee, retained: Scored, threshold: float) -> GroupGuarantee:
    worst = worst_in_group(retained.asked, retained.scores, group.group)
    return replace(group, refused=_share(worst > threshold)) if len(worst) else group


def _usable(labels: Sequence[Hashable] | None) -> bool:
    """Groups that can be held out: every row has one and there are at least two."""
    return labels is not None and all(label is not None for label in labels) and len(set(labels)) > 1


def _share(flags: Bools) -> Interval:
    return binomial_interval(int(flags.sum()), len(flags))
