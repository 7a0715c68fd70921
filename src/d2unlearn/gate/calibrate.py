"""From the energies of held-out answers to a threshold with a guarantee. Pure: numbers in, numbers out.

    validation   retained requests: choose and standardise the score
    calibration  retained requests: the threshold, an order statistic of their scores (split conformal prediction)
    forget       requests to refuse, if any: help to choose, may raise the threshold, and tell how many are missed

Forget requests cannot break the guarantee: the calibration scores are exchangeable with a fresh retained request's, since
nothing that the score depends on has seen either; and the threshold only ever moves up from the conformal value, which can
only refuse fewer.

The raise. For a threshold t, errors(t) = share of retained requests (validation and calibration) above t + share of forget
requests at or below t. It is constant between neighbouring scores; of the gaps at or above the conformal value with the
fewest errors the widest is taken, and its middle is the threshold (the lowest such gap when several are equally wide). Staying
at the conformal value where a raise spares nothing measurable was tried: where every calibration prompt is answered with
confidence it lies so low that retained questions in another wording are refused (docs/log.md).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from d2unlearn.errors import GateError
from d2unlearn.gate.score import CANDIDATES, DEFAULT, Indices, Score, request_scores
from d2unlearn.schema import Interval
from d2unlearn.stats import Floats, auroc, binomial_interval, conformal_rank, fpr_at_tpr

Energies = Sequence[Sequence[float]]
"""Of each request the energies of its answer, position by position."""

N_FOLDS = 5


@dataclass(frozen=True)
class Candidate:
    """How well one score tells forget requests from validation requests. `auroc_error`: its standard error.

    `missed`: the share of forget requests that lie at or below the validation request whose rank leaves the stated share of
    validation requests above it.
    """

    name: str
    auroc: float
    auroc_error: float
    fpr_at_95_tpr: float
    missed: float


@dataclass(frozen=True)
class Calibration:
    """A threshold and everything that was measured on the way to it.

    `rank`: the order statistic (1 = smallest) of the calibration scores behind `conformal_threshold`. `candidates`, `miss_rate`
    (cross-fitted) and `forget_scores` are empty or None without forget requests. `grouped`: whether the folds kept groups
    together. `validation_false_refusal` is optimistic by a little where the score was chosen on the same rows.
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


def calibrate(
    validation: Energies,
    calibration: Energies,
    forget: Energies = (),
    groups: Sequence[Hashable] | None = None,
    *,
    max_false_refusal: float = 0.01,
    confidence: float | None = None,
    candidates: Mapping[str, Score] = CANDIDATES,
    default: str = DEFAULT,
    n_folds: int = N_FOLDS,
    seed: int = 0,
) -> Calibration:
    """Choose a score, set its threshold so that at most `max_false_refusal` of retained requests lie above, measure it.

    `groups`: for each forget request which group (author, document) it belongs to; None: rows are taken as independent.
    Raises `GateError` when there are too few calibration requests for the rate asked for, none for validation, or energies
    that are not finite.
    """
    rank = conformal_rank(len(calibration), max_false_refusal, confidence)
    _check(validation, calibration, forget)
    fitted = {name: score.fit(validation) for name, score in candidates.items()}
    table = {
        name: _Scored(
            request_scores(score, validation),
            request_scores(score, calibration),
            request_scores(score, forget),
            rank,
            max_false_refusal,
        )
        for name, score in fitted.items()
    }
    name = _chosen(table, np.arange(len(forget)), default)
    scored = table[name]
    threshold = scored.threshold(np.arange(len(forget)))
    return Calibration(
        name=name,
        score=fitted[name],
        threshold=threshold,
        conformal_threshold=scored.conformal,
        rank=rank,
        candidates=tuple(_measured(n, s) for n, s in table.items()) if len(forget) else (),
        validation_false_refusal=_share(scored.validation > threshold),
        calibration_false_refusal=_share(scored.calibration > threshold),
        miss_rate=_cross_fitted_misses(table, _folds(len(forget), groups, n_folds, seed), default),
        grouped=_usable(groups),
        calibration_scores=tuple(scored.calibration.tolist()),
        forget_scores=tuple(scored.forget.tolist()),
    )


def raised(conformal: float, retained: Floats, forget: Floats) -> float:
    """The threshold with forget scores taken into account: never below `conformal`. See the head of this file."""
    if not len(forget):
        return conformal
    edges = np.unique(np.concatenate([retained, forget, [conformal]]))
    edges = edges[edges >= conformal]
    if len(edges) == 1:
        return conformal
    lower = edges[:-1]
    above = 1 - np.searchsorted(np.sort(retained), lower, side="right") / max(len(retained), 1)
    missed = np.searchsorted(np.sort(forget), lower, side="right") / len(forget)
    errors = above + missed
    widths = np.where(errors <= errors.min() + 1e-12, np.diff(edges), -1.0)
    best = int(np.argmax(widths))
    return float((edges[best] + edges[best + 1]) / 2)


def auroc_error(value: float, n_negatives: int, n_positives: int) -> float:
    """Standard error of an AUROC. At 0 or 1, where the formula gives 0, that of half a row of the smaller side.

    Source: Hanley & McNeil 1982.
    """
    if not n_negatives or not n_positives:
        return math.nan
    q1, q2 = value / (2 - value), 2 * value**2 / (1 + value)
    variance = value * (1 - value) + (n_positives - 1) * (q1 - value**2) + (n_negatives - 1) * (q2 - value**2)
    floor = 0.5 / min(n_negatives, n_positives)
    return max(math.sqrt(max(variance, 0.0) / (n_negatives * n_positives)), floor)


@dataclass(frozen=True)
class _Scored:
    """One candidate's request scores on the three sets."""

    validation: Floats
    calibration: Floats
    forget: Floats
    rank: int
    max_false_refusal: float

    @property
    def conformal(self) -> float:
        return float(np.sort(self.calibration)[self.rank - 1])

    def threshold(self, rows: Indices) -> float:
        """With the forget requests `rows` (indices) taken into account."""
        return raised(self.conformal, np.concatenate([self.validation, self.calibration]), self.forget[rows])

    def missed(self, rows: Indices) -> float:
        """Share of the forget requests `rows` that a threshold set by the validation requests alone would let pass."""
        n = len(self.validation)
        threshold = np.sort(self.validation)[min(math.ceil((n + 1) * (1 - self.max_false_refusal)), n) - 1]
        return float((self.forget[rows] <= threshold).mean())


def _chosen(table: Mapping[str, _Scored], rows: Indices, default: str) -> str:
    """The first candidate, in the table's order, that is as good as the best one on these forget requests.

    Two one-standard-error rules, one after the other: AUROC within one of the largest; of those, misses at the rate asked for
    within one of the fewest. The table holds the preferred score first, so another takes its place only where it is
    measurably better. Without forget requests: `default`.
    """
    if not len(rows):
        return default
    values = {name: auroc(s.validation, s.forget[rows]) for name, s in table.items()}
    best = max(values, key=lambda name: values[name])
    bar = values[best] - auroc_error(values[best], len(table[best].validation), len(rows))
    missed = {name: table[name].missed(rows) for name, value in values.items() if value >= bar}
    fewest = min(missed.values())
    return next(name for name, share in missed.items() if share <= fewest + _share_error(fewest, len(rows)))


def _share_error(share: float, n: int) -> float:
    """Standard error of a share of n, at least that of one request."""
    return max(math.sqrt(share * (1 - share) / n), 1 / n)


def _measured(name: str, scored: _Scored) -> Candidate:
    value = auroc(scored.validation, scored.forget)
    error = auroc_error(value, len(scored.validation), len(scored.forget))
    missed = scored.missed(np.arange(len(scored.forget)))
    return Candidate(name, value, error, fpr_at_tpr(scored.validation, scored.forget), missed)


def _cross_fitted_misses(
    table: Mapping[str, _Scored],
    folds: Sequence[Indices],
    default: str,
) -> Interval | None:
    """Share of forget requests that pass, each judged by a gate whose choice and raise never saw its fold."""
    if not folds:
        return None
    total = np.arange(sum(len(fold) for fold in folds))
    missed = 0
    for fold in folds:
        others = np.setdiff1d(total, fold)
        scored = table[_chosen(table, others, default)]
        missed += int((scored.forget[fold] <= scored.threshold(others)).sum())
    return binomial_interval(missed, len(total))


def _folds(n: int, groups: Sequence[Hashable] | None, n_folds: int, seed: int) -> list[Indices]:
    """Indices of each fold: whole groups, shuffled and dealt out in turn; rows by themselves without usable groups."""
    if not n:
        return []
    labels = [str(g) for g in groups] if groups is not None and _usable(groups) else [str(i) for i in range(n)]
    names = sorted(set(labels))
    order = np.random.default_rng(seed).permutation(len(names))
    fold_of = {names[group]: turn % n_folds for turn, group in enumerate(order)}
    assigned = np.array([fold_of[label] for label in labels])
    return [np.flatnonzero(assigned == fold) for fold in range(n_folds) if (assigned == fold).any()]


def _usable(groups: Sequence[Hashable] | None) -> bool:
    """Groups that can be held out: every row has one and there are at least two."""
    return groups is not None and all(g is not None for g in groups) and len(set(groups)) > 1


def _share(flags: NDArray[np.bool_]) -> Interval:
    return binomial_interval(int(flags.sum()), len(flags))


def _check(validation: Energies, calibration: Energies, forget: Energies) -> None:
    if not validation:
        raise GateError("no validation prompts: give more retained prompts, a share of them chooses the score")
    for kind, energies in (("retained", validation), ("retained", calibration), ("forget", forget)):
        if not all(math.isfinite(energy) for row in energies for energy in row):
            raise GateError(f"the model's energies on {kind} prompts are not finite numbers: the model is broken")
