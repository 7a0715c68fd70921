"""Which score: the one that holds forgotten and retained requests furthest apart, for how much they vary. Pure.

    gap = (l - h) / (s_r + s_f)     h: what the stated share of retained requests exceeds
                                    l: what 5% of forgotten ones fall short of
                                    s: interquartile range / 1.349, of either

Over all wordings, and rows from near by; each question counts once. Negative: they overlap. An AUROC says only whether they
do: eleven scores that tell all rows apart look the same, and the next wording shows that they were not.

What is judged by several statistics at once is taken only where it is clearly better than the best of one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from d2unlearn.gate.asked import AskedRequest, asked_scores, weights_of
from d2unlearn.gate.score import FirstTokens, Highest, MaxOf, Score
from d2unlearn.stats import Floats, auroc, fpr_at_tpr

FORGOTTEN_BELOW = 0.05
"""Forgotten renderings that may lie below the gap's upper edge."""
CLEARLY = 2.0
"""Standard errors of the difference by which a combination has to be better."""
N_DRAWS = 200
"""Bootstrap draws of questions behind a standard error."""

COMBINATIONS: Mapping[str, Score] = {"prompt-or-highest": MaxOf((FirstTokens(1), Highest(2)))}
"""Largest of several statistics, each in units of its own spread over retained requests: one number again."""


@dataclass(frozen=True)
class Candidate:
    """How well one score tells forget requests from validation requests. `auroc_error`: its standard error.

    `missed`: the share of forget requests that lie at or below the validation request whose rank leaves the stated share of
    validation requests above it. `gap`, `gap_error`: see the head of this file; None in gates of before 0.3.
    """

    name: str
    auroc: float
    auroc_error: float
    fpr_at_95_tpr: float
    missed: float
    gap: float | None = None
    gap_error: float | None = None


@dataclass(frozen=True)
class Choice:
    """The score taken, fitted; what was measured of each; in one sentence why it was taken."""

    name: str
    score: Score
    candidates: tuple[Candidate, ...]
    reason: str


def choose(
    validation: Sequence[AskedRequest],
    forget: Sequence[AskedRequest],
    candidates: Mapping[str, Score],
    default: str,
    max_false_refusal: float,
    *,
    combinations: Mapping[str, Score] | None = None,
    seed: int = 0,
) -> Choice:
    """The score with the largest gap; without forget requests `default`, which is a name of `candidates`.

    Scores are standardised by the validation requests as they stand in their file.
    """
    retained = [each.looks[0] for each in validation if each.as_it_is] or [each.looks[0] for each in validation]
    together = {} if combinations is None else combinations
    fitted = {name: score.fit(retained) for name, score in {**candidates, **together}.items()}
    if not forget:
        return Choice(default, fitted[default], (), f"{default}: no forget rows to choose by")
    scores = {name: (asked_scores(score, validation), asked_scores(score, forget)) for name, score in fitted.items()}
    weights = _drawn_weights(validation, seed), _drawn_weights(forget, seed + 1)
    gaps = {name: gaps_between(*pair, max_false_refusal, weights) for name, pair in scores.items()}
    measured = {name: _measured(name, pair, gaps[name], max_false_refusal) for name, pair in scores.items()}
    best = max(candidates, key=lambda name: gaps[name][0])
    for name in together:
        ahead = gaps[name] - gaps[best]
        if ahead[0] > max(CLEARLY * float(np.std(ahead[1:])), 0.0):
            best = name
    return Choice(best, fitted[best], tuple(measured.values()), _reason(best, measured, default))


def gaps_between(retained: Floats, forget: Floats, max_false_refusal: float, weights: tuple[Floats, Floats]) -> Floats:
    """[D]: the gap of the head of this file, under each weighting. weights: of retained and forget scores, [D, N] each."""
    r_at = _quantiles(retained, weights[0], (0.25, 0.75, 1 - max_false_refusal))
    f_at = _quantiles(forget, weights[1], (0.25, 0.75, FORGOTTEN_BELOW))
    spread = (r_at[1] - r_at[0] + f_at[1] - f_at[0]) / 1.349
    return np.asarray((f_at[2] - r_at[2]) / np.maximum(spread, 1e-6))


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


def _quantiles(values: Floats, weights: Floats, shares: Sequence[float]) -> list[Floats]:
    """For each share, [D]: the smallest values with at least it of the weight at or below. weights: [D, N]."""
    order = np.argsort(values, kind="stable")
    passed = np.cumsum(weights[:, order], axis=1)
    ordered = np.nan_to_num(values, posinf=1e6, neginf=-1e6)[order]
    return [ordered[np.argmax(passed >= share * passed[:, -1:] - 1e-12, axis=1)] for share in shares]


def _drawn_weights(asked: Sequence[AskedRequest], seed: int) -> Floats:
    """[1 + N_DRAWS, N]: the renderings' weights, then those of questions drawn with replacement, the same for every score."""
    plain = weights_of(asked)
    numbers = {question: place for place, question in enumerate(dict.fromkeys(each.question for each in asked))}
    of_question = np.array([numbers[each.question] for each in asked])
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(numbers), np.full(len(numbers), 1 / len(numbers)), size=N_DRAWS)
    return np.concatenate([plain[np.newaxis], plain * drawn[:, of_question]])


def _measured(name: str, pair: tuple[Floats, Floats], gaps: Floats, max_false_refusal: float) -> Candidate:
    retained, forget = pair
    value, n = auroc(retained, forget), len(retained)
    threshold = np.sort(retained)[min(math.ceil((n + 1) * (1 - max_false_refusal)), n) - 1]
    return Candidate(
        name,
        value,
        auroc_error(value, n, len(forget)),
        fpr_at_tpr(retained, forget),
        float((forget <= threshold).mean()),
        float(gaps[0]),
        float(np.std(gaps[1:])),
    )


def _reason(best: str, measured: Mapping[str, Candidate], default: str) -> str:
    """Why the score was taken, with the numbers: beside the runner-up and the one that would be taken without forget rows."""
    ranked = sorted(measured.values(), key=lambda candidate: -(candidate.gap or 0.0))
    others = [candidate for candidate in ranked if candidate.name != best]
    gap = f"{measured[best].gap:.2f} of the scores' spread"
    said = f"{best} leaves the widest gap, {gap} (standard error {measured[best].gap_error:.2f})"
    if others and (others[0].gap or 0.0) > (measured[best].gap or 0.0):
        said = f"{best} leaves a gap of {gap}; that of {others[0].name}, {others[0].gap:.2f}, is not clearly wider"
    elif others:
        said += f"; next {others[0].name}, {others[0].gap:.2f}"
    if default not in (best, others[0].name if others else best) and default in measured:
        said += f"; {default}, {measured[default].gap:.2f}"
    return said
