"""Which detector is clearly better than the one that the others are compared with: said by paired intervals alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from d2unlearn.analysis.records import Analysis, Estimate, ModelRole, ModelTrial, Placement, Refusals, Separation, SetSummary
from d2unlearn.schema import Kind

Significance = Literal["better", "worse", ""]
"""Of a difference to the base detector; empty where it may be chance. Also the CSS classes of the page."""
ROLES: Mapping[ModelRole, str] = {"original": "original", "model": "on trial", "oracle": "never knew"}
"""What the models are called."""


@dataclass(frozen=True)
class Rival:
    """A detector's decisions beside the base detector's, at one rate. `better`, `worse`: the sets on which it is clearly so."""

    detector: str
    better: tuple[str, ...]
    worse: tuple[str, ...]

    @property
    def clearly_better(self) -> bool:
        """Better somewhere and worse nowhere: what would be a reason to decide by it."""
        return bool(self.better) and not self.worse


def significance(difference: Estimate) -> Significance:
    """Better or worse, where more is better and the interval leaves 0 out; neither where it holds it (or is not a number)."""
    if difference.low > 0:
        return "better"
    return "worse" if difference.high < 0 else ""


def refusal_significance(more: Estimate, kind: Kind) -> Significance:
    """Of how much more of a set is refused: better is to refuse more of a forget set or less of a retained one."""
    return significance(more if kind == "forget" else Estimate(-more.value, -more.high, -more.low))


def rivals(trial: ModelTrial, sets: Sequence[SetSummary], rate: float, placement: Placement = "conformal") -> tuple[Rival, ...]:
    """Every detector of the trial by what its threshold for `rate` decides. The base detector itself differs on no set."""
    return tuple(_rival(refusals, sets) for refusals in refusals_of(trial, rate, placement).values())


def _rival(refusals: Refusals, sets: Sequence[SetSummary]) -> Rival:
    by_set = {named.name: refusal_significance(refusals.more[named.name], named.kind) for named in sets}
    better, worse = (tuple(name for name, found in by_set.items() if found == wanted) for wanted in ("better", "worse"))
    return Rival(refusals.index, better, worse)


def trial_of(analysis: Analysis, role: ModelRole = "model") -> ModelTrial:
    """The trial of the model in that role."""
    return next(trial for trial in analysis.models if trial.role == role)


def pair_of(trial: ModelTrial, forget: str, retain: str) -> dict[str, Separation]:
    """Every detector's separation of one forget set from one retained set."""
    return {s.index: s for s in trial.separations if (s.forget, s.retain) == (forget, retain)}


def refusals_of(trial: ModelTrial, rate: float, placement: Placement = "conformal") -> dict[str, Refusals]:
    """What each detector would refuse at a rate, by where its threshold lies."""
    return {r.index: r for r in trial.refusals if (r.rate, r.placement) == (rate, placement)}


def wordings(sets: Sequence[SetSummary]) -> tuple[tuple[str, str], ...]:
    """Forget sets, each with the retained set of the same wording: `forget_X` with `retain_X`, others with the main one."""
    retained = [named.name for named in sets if named.kind == "retain"]
    return tuple((named.name, _partner(named.name, retained)) for named in sets if named.kind == "forget")


def _partner(forget: str, retained: Sequence[str]) -> str:
    alike = f"retain{forget.removeprefix('forget')}"
    return alike if forget.startswith("forget") and alike in retained else retained[0]
