"""What is searched for each entry, and which parameters to try next. The search itself is optuna's.

All entries have the same number of trials. The first is the published one: default parameters at the rate that fits the
model's size. Every method's learning rate is searched within the same factors of that; beside it at most two parameters of its
own, those that its authors say matter. An entry that is not in the table is searched in its learning rate alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from d2unlearn.comparison.records import Trial

RATE = "learning_rate_factor"
"""The parameter that every method has: times the automatic learning rate."""


@dataclass(frozen=True)
class SearchRange:
    """Values from low to high; drawn evenly in the logarithm where low is positive, else evenly."""

    low: float
    high: float

    @property
    def logarithmic(self) -> bool:
        return self.low > 0

    def clipped(self, value: float) -> float:
        return min(max(value, self.low), self.high)


@dataclass(frozen=True)
class Space:
    """ranges: what is searched; fixed: parameters with another value than their default."""

    ranges: Mapping[str, SearchRange]
    fixed: Mapping[str, Any]


RATE_RANGE = SearchRange(0.2, 5.0)
SPACES: dict[str, dict[str, SearchRange]] = {
    "eua": {RATE: RATE_RANGE, "gamma": SearchRange(0.01, 1.0)},
    "deep_eua": {RATE: RATE_RANGE, "gamma": SearchRange(0.01, 1.0), "size": SearchRange(0.01, 0.06)},
    "gradient_ascent": {RATE: RATE_RANGE},
    "gradient_difference": {RATE: RATE_RANGE, "gamma": SearchRange(0.01, 1.0)},
    "npo": {RATE: RATE_RANGE, "beta": SearchRange(0.03, 1.0), "gamma": SearchRange(0.1, 3.0)},
    "simnpo": {RATE: RATE_RANGE, "beta": SearchRange(1.0, 10.0), "gamma": SearchRange(0.03, 1.0)},
    "wga": {RATE: RATE_RANGE, "beta": SearchRange(0.3, 5.0), "gamma": SearchRange(0.03, 3.0)},
    "satimp": {RATE: RATE_RANGE, "beta1": SearchRange(1.0, 10.0), "gamma": SearchRange(0.03, 3.0)},
    "ce_u": {RATE: RATE_RANGE},
    "undial": {RATE: RATE_RANGE, "beta": SearchRange(3.0, 30.0), "alpha": SearchRange(0.0, 2.0)},
    "rmu": {RATE: RATE_RANGE, "steering_coeff": SearchRange(1.0, 100.0), "alpha": SearchRange(0.1, 10.0)},
    "max_entropy": {RATE: RATE_RANGE, "gamma": SearchRange(0.03, 3.0)},
    "pdu": {RATE: RATE_RANGE, "gamma": SearchRange(0.001, 1.0), "retain_loss_eps": SearchRange(0.03, 1.0)},
    "altpo": {RATE: RATE_RANGE, "beta": SearchRange(0.03, 1.0), "gamma": SearchRange(0.1, 3.0)},
    "idk": {RATE: RATE_RANGE, "gamma": SearchRange(0.1, 3.0)},
    "dpo": {RATE: RATE_RANGE, "beta": SearchRange(0.03, 1.0), "gamma": SearchRange(0.1, 3.0)},
    "idk_ap": {RATE: RATE_RANGE, "beta": SearchRange(0.03, 1.0), "gamma": SearchRange(0.1, 3.0)},
    "input_classifier": {"C": SearchRange(0.001, 100.0)},
    "embedding_corruption": {"C": SearchRange(0.001, 100.0), "strength": SearchRange(0.1, 10.0)},
    "prompt_guard": {},
}
STARTUP = 3
"""Trials before the search begins to model what it has seen."""


def space_of(name: str, given: Mapping[str, Any], *, is_guard: bool = False) -> tuple[Space, list[str]]:
    """An entry's space with the settings' entries over the table's: [low, high] is a range, anything else a fixed value.

    Returns the space and what is wrong with the entries. is_guard: it has no learning rate to search where no table names it.
    """
    searched = {} if is_guard else {RATE: RATE_RANGE}
    ranges, fixed, mistakes = dict(SPACES.get(name, searched)), dict[str, Any](), list[str]()
    for key, value in given.items():
        ranges.pop(key, None)
        if isinstance(value, list) and len(value) == 2 and all(_is_number(end) for end in value):
            low, high = (float(end) for end in value)
            ranges[key] = SearchRange(low, high)
            mistakes += [] if low < high else [f"search {name}.{key}: {low} should lie below {high}"]
        else:
            fixed[key] = value
    return Space(ranges, fixed), mistakes


def trials_of(space: Space, trials: int) -> int:
    """How many trials there are to make: one where there is nothing to choose."""
    return trials if space.ranges else 1


def next_parameters(space: Space, defaults: Mapping[str, float], done: Sequence[Trial], seed: int) -> dict[str, float]:
    """What to try after the trials that are done. The same arguments give the same answer, on every process.

    defaults: of every parameter with a range. They are tried first, as they are.
    """
    if not done:
        return {name: float(defaults[name]) for name in space.ranges}
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions: dict[str, optuna.distributions.BaseDistribution] = {
        name: optuna.distributions.FloatDistribution(searched.low, searched.high, log=searched.logarithmic)
        for name, searched in space.ranges.items()
    }
    sampler = optuna.samplers.TPESampler(seed=1000 * seed + len(done), n_startup_trials=STARTUP)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for trial in done:
        inside = {name: searched.clipped(trial.parameters[name]) for name, searched in space.ranges.items()}
        study.add_trial(optuna.trial.create_trial(params=inside, distributions=distributions, value=trial.score))
    proposed: dict[str, float] = study.ask(distributions).params
    return {name: float(f"{proposed[name]:.4g}") for name in space.ranges}


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
