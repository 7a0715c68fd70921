"""How much an audit asks the model alone: at rest, in its own wording and paraphrased, and layer by layer through the head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from d2unlearn.attacks.reading import AskedRows, Reading, Setting
from d2unlearn.attacks.residuals import n_layers, read_by_head
from d2unlearn.attacks.restoring import spread
from d2unlearn.attacks.scoring import probabilities
from d2unlearn.audit.claims import FORGET
from d2unlearn.audit.parts import AttackPlan, AuditRows, Cost, Level, Part, Subject, asked_sets, drawn
from d2unlearn.audit.summary import AT_REST
from d2unlearn.data.records import content_hash
from d2unlearn.schema import Example


@dataclass(frozen=True)
class LayersBudget:
    """at_rest: rows of each set asked as they are; rows: of each set, asked of each layer; None: all.

    layers: at most so many, spread evenly over all but the last, which is the model itself; None: all.
    """

    at_rest: int | None
    rows: int | None
    layers: int | None


BUDGETS: Mapping[Level, LayersBudget] = {
    "quick": LayersBudget(60, 20, 3),
    "thorough": LayersBudget(None, 200, 12),
    "exhaustive": LayersBudget(None, None, None),
}


def layers_parts(subject: Subject, rows: AuditRows, level: Level, seed: int) -> Iterator[Part]:
    """One part for what is at rest, one for each layer."""
    budget = BUDGETS[level]
    readings = [(asked, AT_REST) for asked in asked_sets(subject, rows, budget.at_rest, seed)]
    paraphrased = drawn(rows.paraphrased, budget.at_rest, seed)
    if paraphrased:
        readings.append((subject.rendered(FORGET, paraphrased), {"wording": "paraphrased"}))
    about = [_hashes(rows.forget), _hashes(rows.never_seen), _hashes(rows.paraphrased), budget.at_rest]
    yield Part("at rest", about, _cost([asked for asked, _ in readings]), partial(_at_rest, subject, readings), "gone")
    asked = asked_sets(subject, rows, budget.rows, seed)
    about = [_hashes(rows.forget), _hashes(rows.never_seen), budget.rows]
    for layer in spread(n_layers(subject.model) - 1, budget.layers):
        yield Part(f"layer {layer}", about, _cost(asked), partial(_read_by_head, subject, asked, layer), "gone")


PLAN = AttackPlan(
    "layers",
    "At rest and layer by layer",
    "What the model's answers are worth to itself as it is, and what its head reads after each layer.",
    layers_parts,
    claims=("gone",),
)


def _at_rest(subject: Subject, readings: Sequence[tuple[AskedRows, Mapping[str, Setting]]]) -> list[Reading]:
    return [probabilities(subject.model, asked, setting, batch_size=subject.batch_size) for asked, setting in readings]


def _read_by_head(subject: Subject, asked: Sequence[AskedRows], layer: int) -> list[Reading]:
    return [read_by_head(subject.model, of_set, layer, batch_size=subject.batch_size) for of_set in asked]


def _cost(asked: Sequence[AskedRows]) -> Cost:
    return Cost(scored=sum(len(of_set.tokens) for of_set in asked))


def _hashes(rows: Sequence[Example]) -> list[str]:
    return [content_hash(row) for row in rows]
