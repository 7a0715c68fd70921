"""What the energy where an answer begins consists of, model by model: one table of the analysis's page."""

from __future__ import annotations

import math
from dataclasses import dataclass

from d2unlearn.analysis.records import Analysis, ModelTrial
from d2unlearn.analysis.significance import ROLES
from d2unlearn.metrics.level_shift import LogitShape, level_shift
from d2unlearn.report.notation import fixed, percent, readable

ENERGY, CENTRED, ENTROPY = "energy/prompt", "centred-energy/prompt", "entropy/prompt"
"""The detectors whose values are the parts: every model reads the same question there, so that they can be compared."""


@dataclass(frozen=True)
class LevelLine:
    """One set under one model, as written. `share`: of level shift against the original; a dash with the `reason` for none."""

    model: str
    name: str
    kind: str
    numbers: tuple[str, ...]
    share: str
    mostly_level: bool
    reason: str


def level_lines(analysis: Analysis) -> tuple[LevelLine, ...]:
    """Energy, mean logit, centred energy and entropy of every set, means over requests; none where they were not read."""
    original = next((trial for trial in analysis.models if trial.role == "original"), None)
    return tuple(
        _line(trial, named.name, named.kind, original)
        for named in analysis.sets
        for trial in analysis.models
        if {ENERGY, CENTRED, ENTROPY} <= trial.values.keys()
    )


def shape_at_prompt(trial: ModelTrial, name: str) -> LogitShape:
    """Means over the requests of a set, where their answers begin: the mean logit is the centred energy less the energy."""
    energy, centred, entropy = (_mean(trial.values[detector][name]) for detector in (ENERGY, CENTRED, ENTROPY))
    return LogitShape(centred - energy, centred, entropy)


def _line(trial: ModelTrial, name: str, kind: str, original: ModelTrial | None) -> LevelLine:
    shape = shape_at_prompt(trial, name)
    numbers = tuple(fixed(value, 2) for value in (shape.energy, *shape))
    if original is None or trial.role == "original":
        return LevelLine(ROLES[trial.role], readable(name), kind, numbers, fixed(math.nan), False, "")
    shift = level_shift(shape_at_prompt(original, name), shape)
    return LevelLine(ROLES[trial.role], readable(name), kind, numbers, percent(shift.share), shift.mostly_level, shift.reason)


def _mean(values: tuple[float, ...]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
