"""How much an audit puts of the original into the model, to see where what should be gone is still kept.

Only what can carry no fact by itself counts for "gone": a constant vector and the final norm. A layer, or a residual, of the
original knows the answers, and so brings some of them into a model that never knew, the more the nearer that model's weights
lie to the original's. The model without the forget rows that serves as control was trained apart and lies far off, so that it
shows too little of this: these parts are shown beside it and judge nothing. Facts that were never seen are no control here (the
original does not know them either), and are not asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch

from d2unlearn.attacks.reading import AskedRows, NotShownError, Reading
from d2unlearn.attacks.residuals import Residuals, hand_over, mean_shift, n_layers, steer
from d2unlearn.attacks.restoring import (
    ATTENTION,
    FINAL_NORM,
    MLP,
    OUTSIDE,
    Restoring,
    interpolate,
    restore,
    same_parameters,
    spread,
    weight_parts,
)
from d2unlearn.audit.claims import FORGET
from d2unlearn.audit.parts import AttackPlan, AuditRows, Cost, Level, Part, Subject, drawn
from d2unlearn.data.records import content_hash
from d2unlearn.observation import causal_model
from d2unlearn.schema import Example

MOST_FOR_VECTOR = 0.1
"""Share of the forget rows that a constant vector is taken from at most."""


@dataclass(frozen=True)
class StorageBudget:
    """rows: asked under each setting, none of which a vector is taken from; None: all."""

    rows: int | None
    restoring: Restoring
    residuals: Residuals


BUDGETS: Mapping[Level, StorageBudget] = {
    "quick": StorageBudget(20, Restoring((0.3,), layers=2), Residuals(layers=3, vector_rows=10, times=(1.0,))),
    "thorough": StorageBudget(200, Restoring(layers=12), Residuals(layers=12)),
    "exhaustive": StorageBudget(None, Restoring(), Residuals()),
}


class _Asked(NamedTuple):
    """What all parts of one subject share. hashes: of the rows asked, and of those that a vector is taken from."""

    subject: Subject
    asked: AskedRows
    for_vector: AskedRows
    hashes: list[list[str]]

    def part(self, name: str, cost: int, read: Callable[[], list[Reading]], *, judges: bool = False) -> Part:
        return Part(name, self.hashes, Cost(scored=cost), read, "gone" if judges else None)

    @property
    def n(self) -> int:
        return len(self.asked.tokens)


def storage_parts(subject: Subject, rows: AuditRows, level: Level, seed: int) -> Iterator[Part]:
    """One part a setting; one a layer for a constant vector."""
    budget = BUDGETS[level]
    _check_original(subject)
    given = _asked(subject, rows.forget, budget, seed)
    yield from _restoring_parts(given, budget.restoring)
    yield from _residual_parts(given, budget.residuals)


PLAN = AttackPlan(
    "storage",
    "Where it hides",
    "What comes back when some of the original is put in: a share of all weights, some of them, one vector, a layer's output.",
    storage_parts,
    claims=("gone",),
    subjects=("artifact", "oracle"),
    uses_original=True,
)


def _check_original(subject: Subject) -> None:
    """Raises `NotShownError` where there is no original, or nothing of it that the model does not have already."""
    theirs = same_parameters(subject.model, subject.needs_original())
    ours = dict(causal_model(subject.model).named_parameters())
    if all(torch.equal(ours[name], theirs[name].to(ours[name].device)) for name in ours):
        raise NotShownError(
            "the model before unlearning (--original) has the very weights of this one: nothing can be put back"
        )


def _asked(subject: Subject, forget: Sequence[Example], budget: StorageBudget, seed: int) -> _Asked:
    """Raises `NotShownError` for rows too few to set some aside for a vector."""
    aside = min(budget.residuals.vector_rows, int(MOST_FOR_VECTOR * len(forget)))
    if not aside:
        raise NotShownError(f"{len(forget)} forget rows are too few to take a constant vector from some and to ask others")
    for_vector = drawn(forget, aside, seed)
    taken = {row.example_id for row in for_vector}
    asked = drawn([row for row in forget if row.example_id not in taken], budget.rows, seed)
    hashes = [[content_hash(row) for row in each] for each in (asked, for_vector)]
    return _Asked(subject, subject.rendered(FORGET, asked), subject.rendered(FORGET, for_vector), hashes)


def _restoring_parts(given: _Asked, budget: Restoring) -> Iterator[Part]:
    weight_parts(given.subject.model)
    for share in budget.shares:
        yield given.part(f"share {share:g}", given.n, partial(_interpolate, given, share))
    layers = [f"layer {layer}" for layer in spread(n_layers(given.subject.model), budget.layers)]
    for part in (*layers, ATTENTION, MLP, OUTSIDE, FINAL_NORM):
        yield given.part(f"{part} restored", given.n, partial(_restore, given, part), judges=part == FINAL_NORM)


def _residual_parts(given: _Asked, budget: Residuals) -> Iterator[Part]:
    """After the last layer a residual handed over is the giver's own answer, which says nothing of the taker."""
    n = n_layers(given.subject.model)
    for layer in spread(n, budget.layers):
        cost = len(budget.times) * given.n + 2 * len(given.for_vector.tokens)
        name = f"vector after layer {layer}, times {', '.join(f'{times:g}' for times in budget.times)}"
        yield given.part(name, cost, partial(_steer, given, layer, budget.times), judges=True)
    for layer in spread(n - 1, budget.layers):
        yield given.part(f"handed over after layer {layer}", 2 * given.n, partial(_hand_over, given, layer))
        yield given.part(f"handed back after layer {layer}", 2 * given.n, partial(_hand_back, given, layer))


def _interpolate(given: _Asked, share: float) -> list[Reading]:
    subject = given.subject
    return [interpolate(subject.model, subject.needs_original(), given.asked, share, batch_size=subject.batch_size)]


def _restore(given: _Asked, part: str) -> list[Reading]:
    subject = given.subject
    return [restore(subject.model, subject.needs_original(), given.asked, part, batch_size=subject.batch_size)]


def _steer(given: _Asked, layer: int, times: Sequence[float]) -> list[Reading]:
    model, size = given.subject.model, given.subject.batch_size
    vector = mean_shift(model, given.subject.needs_original(), given.for_vector.tokens, layer, batch_size=size)
    return [steer(model, given.asked, layer, vector, each, batch_size=size) for each in times]


def _hand_over(given: _Asked, layer: int) -> list[Reading]:
    model, original, size = given.subject.model, given.subject.needs_original(), given.subject.batch_size
    return [hand_over(original, model, given.asked, layer, {"the original's residual after layer": layer}, batch_size=size)]


def _hand_back(given: _Asked, layer: int) -> list[Reading]:
    model, original, size = given.subject.model, given.subject.needs_original(), given.subject.batch_size
    setting = {"its residual into the original after layer": layer}
    return [hand_over(model, original, given.asked, layer, setting, batch_size=size)]
