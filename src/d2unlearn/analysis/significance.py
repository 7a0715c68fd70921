"""Which index is clearly better than the one that the others are compared with: said by paired intervals alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from d2unlearn.analysis.records import (
    Analysis,
    Estimate,
    ModelRole,
    ModelTrial,
    Placement,
    Refusals,
    Separation,
    TriedSet,
)

Standing = Literal["ahead", "level", "behind"]
ROLES: Mapping[ModelRole, str] = {"original": "original", "model": "on trial", "oracle": "never knew"}
"""What the models are called."""


@dataclass(frozen=True)
class Rival:
    """An index's decisions beside the reference's, at one rate. `better`, `worse`: the sets on which it is clearly so.

    Better is to refuse more of a forget set or less of a retained one.
    """

    index: str
    better: tuple[str, ...]
    worse: tuple[str, ...]

    @property
    def clearly_better(self) -> bool:
        """Better somewhere and worse nowhere: what would be a reason to decide by it."""
        return bool(self.better) and not self.worse


def standing(difference: Estimate) -> Standing:
    """Ahead or behind where the interval leaves 0 out, level where it holds it (or is not a number)."""
    if difference.low > 0:
        return "ahead"
    return "behind" if difference.high < 0 else "level"


def rivals(trial: ModelTrial, sets: Sequence[TriedSet], rate: float, placement: Placement = "conformal") -> tuple[Rival, ...]:
    """Every index of the trial by what its threshold for `rate` decides. The reference itself is level on all sets."""
    return tuple(_rival(each, sets) for each in refusals_of(trial, rate, placement).values())


def _rival(refusals: Refusals, sets: Sequence[TriedSet]) -> Rival:
    found = {each.name: standing(refusals.more[each.name]) for each in sets}
    good = {each.name: "ahead" if each.kind == "forget" else "behind" for each in sets}
    better = tuple(name for name, stands in found.items() if stands == good[name])
    return Rival(refusals.index, better, tuple(name for name, s in found.items() if s != "level" and name not in better))


def trial_of(analysis: Analysis, role: ModelRole = "model") -> ModelTrial:
    """The trial of the model in that role."""
    return next(each for each in analysis.models if each.role == role)


def pair_of(trial: ModelTrial, forget: str, retain: str) -> dict[str, Separation]:
    """Every index's separation of one forget set from one retained set."""
    return {each.index: each for each in trial.separations if (each.forget, each.retain) == (forget, retain)}


def refusals_of(trial: ModelTrial, rate: float, placement: Placement = "conformal") -> dict[str, Refusals]:
    """What each index would refuse at a rate, by where its threshold lies."""
    return {each.index: each for each in trial.refusals if (each.rate, each.placement) == (rate, placement)}


def wordings(sets: Sequence[TriedSet]) -> tuple[tuple[str, str], ...]:
    """Forget sets, each with the retained set of the same wording: `forget_X` with `retain_X`, others with the main one."""
    retained = [each.name for each in sets if each.kind == "retain"]
    return tuple((name, _partner(name, retained)) for name in (each.name for each in sets if each.kind == "forget"))


def _partner(forget: str, retained: Sequence[str]) -> str:
    alike = f"retain{forget.removeprefix('forget')}"
    return alike if forget.startswith("forget") and alike in retained else retained[0]
