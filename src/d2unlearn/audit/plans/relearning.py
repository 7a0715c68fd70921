"""How much relearning an audit makes: which rows, at which learning rates, for how many steps, by level."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import NamedTuple, cast

from d2unlearn.attacks.reading import AskedRows, NotShownError, Reading, Setting, group_labels
from d2unlearn.attacks.relearned_rows import RowChoice, divided, named_halves, without_copies
from d2unlearn.attacks.relearning import (
    SUITED,
    TWO_DECADES,
    Relearning,
    RelearningGrid,
    ask_after_relearning,
    grid_rate,
)
from d2unlearn.attacks.scoring import probabilities
from d2unlearn.audit.claims import FORGET, NEVER_SEEN
from d2unlearn.audit.parts import AttackPlan, AuditRows, Cost, Level, Part, Subject, drawn
from d2unlearn.data.records import content_hash
from d2unlearn.schema import Example
from d2unlearn.training.recipe import automatic_learning_rate

_ALL: Mapping[RowChoice, tuple[float, ...]] = dict.fromkeys(
    ("whole groups", "spread over groups", "one row", "half of each group", "facts T"), TWO_DECADES
)
BUDGETS: Mapping[Level, RelearningGrid] = {
    "quick": RelearningGrid(
        {"whole groups": (1.0,), "spread over groups": (1.0,), "one row": (1.0, 2.0), "facts T": (1.0,)},
        steps=(5, 20),
        asked=40,
    ),
    "thorough": RelearningGrid({**_ALL, "retained rows": (1.0,)}, asked=150, lora=1),
    "exhaustive": RelearningGrid({**_ALL, "retained rows": TWO_DECADES}, draws=3, lora=len(_ALL) + 1),
}
TRAINED_RETAINED = 400
"""At most so many retained rows are trained on, drawn."""


class _Chosen(NamedTuple):
    """The rows of one attack. never_seen: asked beside the others, where there are any; `left`: how many could be asked."""

    taught: list[Example]
    asked: list[Example]
    never_seen: list[Example]
    left: int


def suited_rate(subject: Subject) -> float:
    """The learning rate that a grid's factors are of: from the model's size, as unlearning's own is."""
    parameters = sum(parameter.numel() for parameter in subject.model.parameters())
    return automatic_learning_rate(parameters, lora=False) * SUITED


def worst_attacks(readings: Sequence[Reading]) -> list[tuple[RowChoice, float]]:
    """Of each choice of rows the learning rate at which most came back of the forget rows; the worst choice first.

    readings: of one model. Those of weights that the rate destroyed (NaN) count for nothing.
    """
    found: dict[str, tuple[float, float]] = {}
    for reading in readings:
        choice = str(reading.setting.get("relearned", ""))
        if reading.rows == FORGET and choice and reading.mean > found.get(choice, (-1.0, 0.0))[0]:
            found[choice] = reading.mean, float(reading.setting["learning rate"])
    worst_first = sorted(found, key=lambda choice: -found[choice][0])
    return [(cast(RowChoice, choice), found[choice][1]) for choice in worst_first]


def relearning_parts(subject: Subject, rows: AuditRows, level: Level, seed: int) -> Iterator[Part]:
    """At rest, then every choice of rows at every rate, each from the model as it is.

    A choice that these rows do not allow (of groups, where none are known) is left out; `NotShownError` where all are.
    """
    grid, suited = BUDGETS[level], suited_rate(subject)
    if len(rows.forget) < 2:
        raise NotShownError(f"{len(rows.forget)} forget rows are too few to relearn some and to ask for others")
    yield _at_rest(subject, rows, grid, seed)
    for draw in range(seed, seed + grid.draws):
        for choice, chosen in _possible(rows, grid, draw):
            for factor in grid.rates[choice]:
                attack = Relearning(grid_rate(suited, factor), grid.steps, grid.batch_size, draw)
                yield _part(subject, rows.forget, choice, chosen, attack)


def low_rank_parts(subject: Subject, rows: AuditRows, level: Level, seed: int, readings: Sequence[Reading]) -> Iterator[Part]:
    """Adapters in the weights' stead, with the choices of rows and at the rates that were worst for the artifact."""
    grid = BUDGETS[level]
    for choice, rate in worst_attacks(readings)[: grid.lora]:
        for draw in range(seed, seed + grid.draws):
            attack = Relearning(grid_rate(rate, grid.lora_factor), grid.steps, grid.batch_size, draw, grid.lora_rank)
            yield _part(subject, rows.forget, choice, _chosen(rows, grid, choice, draw), attack)


def unmade_choices(rows: AuditRows, level: Level, seed: int) -> list[str]:
    """The choices of rows that these rows do not allow, and why."""
    reasons = _choices(rows, BUDGETS[level], seed)[1]
    return [f"relearning {choice}: {reason}" for choice, reason in reasons.items()]


PLAN = AttackPlan(
    name="relearning",
    title="Relearning",
    shows="How likely the model finds the answers of the other forgotten rows once it was fine-tuned on a few of them.",
    parts=relearning_parts,
    claims=("comes_back",),
    then=low_rank_parts,
    unmade=unmade_choices,
)


def _at_rest(subject: Subject, rows: AuditRows, grid: RelearningGrid, seed: int) -> Part:
    """What the rows say before anything is relearned: where the curves begin."""
    asked, never_seen = (drawn(of_set, grid.asked, seed) for of_set in (rows.forget, rows.never_seen))
    unasked = {"not drawn": len(rows.forget) - len(asked)}

    def run() -> list[Reading]:
        sets, size = _rendered(subject, asked, never_seen), subject.batch_size
        readings = [probabilities(subject.model, of_set, {"steps": 0}, batch_size=size) for of_set in sets]
        return [_of_all(reading, rows.forget, unasked) for reading in readings]

    about = _hashes(rows.forget, asked, never_seen)
    return Part("at rest", about, Cost(scored=len(asked) + len(never_seen)), run, "comes_back")


def _part(subject: Subject, forget: Sequence[Example], choice: RowChoice, chosen: _Chosen, attack: Relearning) -> Part:
    """One attack. Readings are of all forget rows, so that rows have the same places in all of them."""
    adapters = "" if attack.lora_rank is None else ", LoRA"
    unasked = {"relearned, or as one relearned": len(forget) - chosen.left, "not drawn": chosen.left - len(chosen.asked)}
    name = f"{choice}{adapters}, learning rate {attack.learning_rate:g}, seed {attack.seed}"

    def run() -> list[Reading]:
        taught = subject.rendered("taught", chosen.taught).tokens
        sets = _rendered(subject, chosen.asked, chosen.never_seen)
        about: dict[str, Setting] = {"relearned": choice, "seed": attack.seed}
        readings = ask_after_relearning(subject.model, taught, sets, attack, about, batch_size=subject.batch_size)
        return [_of_all(reading, forget, unasked) for reading in readings]

    trained = max(attack.steps) * min(attack.batch_size, len(chosen.taught))
    cost = Cost(trained=trained, scored=len(attack.steps) * (len(chosen.asked) + len(chosen.never_seen)))
    about = [asdict(attack), choice, _hashes(forget, chosen.taught, chosen.asked, chosen.never_seen)]
    return Part(name, about, cost, run, "comes_back")


def _rendered(subject: Subject, asked: Sequence[Example], never_seen: Sequence[Example]) -> list[AskedRows]:
    return [subject.rendered(name, of_set) for name, of_set in ((FORGET, asked), (NEVER_SEEN, never_seen)) if of_set]


def _of_all(reading: Reading, forget: Sequence[Example], unasked: Mapping[str, int]) -> Reading:
    """A reading of forget rows with NaN for those that were not asked; others are as they are. unasked: how many, by reason."""
    if reading.rows != FORGET:
        return reading
    values = dict(zip(reading.row_ids, reading.values, strict=True))
    return replace(
        reading,
        row_ids=tuple(row.example_id for row in forget),
        groups=group_labels(forget),
        values=tuple(values.get(row.example_id, math.nan) for row in forget),
        not_asked={reason: count for reason, count in unasked.items() if count},
    )


def _possible(rows: AuditRows, grid: RelearningGrid, draw: int) -> list[tuple[RowChoice, _Chosen]]:
    """The grid's choices of rows, without those that these rows do not allow. Raises `NotShownError` where all do not."""
    found, reasons = _choices(rows, grid, draw)
    if all(choice == "retained rows" for choice in found):
        raise list(reasons.values())[-1]
    return list(found.items())


def _choices(
    rows: AuditRows, grid: RelearningGrid, draw: int
) -> tuple[dict[RowChoice, _Chosen], dict[RowChoice, NotShownError]]:
    """The grid's choices that these rows allow, and why they do not allow the others."""
    found, reasons = dict[RowChoice, _Chosen](), dict[RowChoice, NotShownError]()
    for choice in grid.rates:
        try:
            found[choice] = _chosen(rows, grid, choice, draw)
        except NotShownError as reason:
            reasons[choice] = reason
    return found, reasons


def _chosen(rows: AuditRows, grid: RelearningGrid, choice: RowChoice, draw: int) -> _Chosen:
    """Raises `NotShownError` where the rows cannot be chosen so."""
    groups = group_labels(rows.forget)
    division = divided(choice, groups, named_halves(rows.forget), share=grid.share, seed=draw)
    division = without_copies(division, _hashes(rows.forget)[0])
    taught = [rows.forget[index] for index in division.relearned]
    if choice == "retained rows":
        taught = drawn(rows.retain, TRAINED_RETAINED, draw)
    asked = drawn([rows.forget[index] for index in division.asked], grid.asked, draw)
    if not taught or not asked:
        raise NotShownError("no row is left to relearn, or none to ask for that does not hold the same")
    return _Chosen(taught, asked, drawn(rows.never_seen, grid.asked, draw), len(division.asked))


def _hashes(*sets: Sequence[Example]) -> list[list[str]]:
    return [[content_hash(row) for row in of_set] for of_set in sets]
