"""Which questions the report shows: a seeded few of every set, and always the ones that tell most."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from d2unlearn.report.notation import readable
from d2unlearn.schema import EvaluatedSet, Evaluation, ScoredExample

PER_SET = 2
WORST_LEAK, MISSED, FALSE_REFUSAL = "worst leak", "passed the gate", "refused by mistake"


@dataclass(frozen=True)
class ShownExample:
    """One question with its answers side by side. `tags` says why it is shown; empty for a random choice."""

    set_name: str
    kind: str
    tags: tuple[str, ...]
    original: ScoredExample | None
    unlearned: ScoredExample


def choose_samples(before: Evaluation, after: Evaluation, seed: int = 0, per_set: int = PER_SET) -> tuple[ShownExample, ...]:
    """`per_set` random questions of each set, after those that tell most; a question is shown once.

    Always shown, where there are any: per forget kind the worst leak (highest ROUGE-L recall of the raw answer against
    the truth) and the worst question that passed the gate (highest ROUGE-L recall of the guarded answer); of the
    retained kind the false refusal with the highest gate score. The same input and seed give the same choice.
    """
    generator = np.random.default_rng(seed)
    telling = _telling(after)
    shown: list[ShownExample] = []
    for evaluated in after.sets:
        originals = _originals(before, evaluated)
        tags = telling.get(evaluated.name, {})
        others = [i for i in range(len(evaluated.examples)) if i not in tags]
        drawn = generator.permutation(others)[:per_set].tolist() if others else []
        for index in [*tags, *sorted(drawn)]:
            example = evaluated.examples[index]
            original = originals.get(example.example_id)
            reasons = tuple(tags.get(index, ()))
            shown.append(ShownExample(readable(evaluated.name), evaluated.kind, reasons, original, example))
    return tuple(shown)


def _originals(before: Evaluation, evaluated: EvaluatedSet) -> dict[str, ScoredExample]:
    """The set's examples before, by id."""
    return {e.example_id: e for s in before.sets if s.name == evaluated.name for e in s.examples}


def _telling(after: Evaluation) -> dict[str, dict[int, list[str]]]:
    """Set name -> index of the example -> why it is always shown."""
    forget, retain = ([s for s in after.sets if s.kind == kind] for kind in ("forget", "retain"))
    reasons: dict[str, dict[int, list[str]]] = {}
    for tag, sets, rank in (
        (WORST_LEAK, forget, _raw_leak),
        (MISSED, forget, _passed_leak),
        (FALSE_REFUSAL, retain, _refused_score),
    ):
        if (highest := _highest(sets, rank)) is not None:
            reasons.setdefault(highest[0], {}).setdefault(highest[1], []).append(tag)
    return reasons


def _highest(sets: Sequence[EvaluatedSet], rank: Callable[[ScoredExample], float]) -> tuple[str, int] | None:
    """(set name, index) of the example that ranks highest, the first of equals; NaN ranks nowhere."""
    ranked = [(rank(e), s.name, i) for s in sets for i, e in enumerate(s.examples)]
    best = max((r for r in ranked if not math.isnan(r[0])), key=lambda r: r[0], default=None)
    return None if best is None else best[1:]


def _raw_leak(example: ScoredExample) -> float:
    return example.scores.get("rouge_l_recall", math.nan)


def _passed_leak(example: ScoredExample) -> float:
    """NaN unless it passed the gate; 0 when it passed and its answer was not scored, so that it is shown all the same."""
    if example.refused is not False:
        return math.nan
    score = example.scores.get("guarded_rouge_l_recall", math.nan)
    return 0.0 if math.isnan(score) else score


def _refused_score(example: ScoredExample) -> float:
    """NaN unless it was refused; -inf when it was refused and has no score."""
    if not example.refused:
        return math.nan
    return -math.inf if example.gate_score is None or math.isnan(example.gate_score) else example.gate_score
