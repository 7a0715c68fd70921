"""The search: the same number of trials for all, the published parameters first, the same answer on every process."""

from __future__ import annotations

import math
from typing import Any, get_type_hints

import numpy as np
import pytest

from d2unlearn.comparison.records import Trial
from d2unlearn.comparison.search import RATE, RATE_RANGE, SPACES, SearchRange, Space, next_parameters, space_of, trials_of
from d2unlearn.guards import GUARDS
from d2unlearn.methods import METHODS

SPACE = Space({RATE: RATE_RANGE, "beta": SearchRange(0.0, 2.0)}, {})
DEFAULTS = {RATE: 1.0, "beta": 7.0}


def trials(*scored: tuple[dict[str, float], float]) -> list[Trial]:
    return [Trial(number, parameters, score, {}, 1.0) for number, (parameters, score) in enumerate(scored)]


def test_the_first_trial_is_the_published_one_even_outside_of_the_ranges() -> None:
    assert next_parameters(SPACE, DEFAULTS, [], seed=3) == {RATE: 1.0, "beta": 7.0}


def test_the_same_trials_have_the_same_successor_and_other_seeds_another() -> None:
    done = trials((DEFAULTS, 0.4))
    first = next_parameters(SPACE, DEFAULTS, done, seed=0)
    assert first == next_parameters(SPACE, DEFAULTS, done, seed=0)
    assert first != next_parameters(SPACE, DEFAULTS, done, seed=1)
    assert first != next_parameters(SPACE, DEFAULTS, [*done, *trials((first, 0.2))], seed=0)


def test_rates_are_drawn_evenly_in_the_logarithm_and_other_ranges_evenly() -> None:
    found = [next_parameters(SPACE, DEFAULTS, trials((DEFAULTS, 0.4)), seed=seed) for seed in range(200)]
    rates, betas = (np.array([parameters[name] for parameters in found]) for name in (RATE, "beta"))
    assert ((rates >= 0.2) & (rates <= 5)).all()
    assert np.log(rates).mean() == pytest.approx(0.0, abs=4 * math.log(25) / math.sqrt(12 * 200))
    assert betas.mean() == pytest.approx(1.0, abs=4 * 2 / math.sqrt(12 * 200))


def test_the_search_goes_where_scores_are_high() -> None:
    """Of 25 trials on a hill at rate 3, the last ten are nearer to it than chance would have them."""
    done: list[Trial] = []
    while len(done) < 25:
        tried = next_parameters(Space({RATE: RATE_RANGE}, {}), {RATE: 1.0}, done, seed=0)
        done += [Trial(len(done), tried, -(math.log(tried[RATE] / 3) ** 2), {}, 1.0)]
    distances = [abs(math.log(trial.parameters[RATE] / 3)) for trial in done]
    assert np.mean(distances[-10:]) < 0.5 * np.mean(distances[:4])


def test_every_contestant_has_a_space_of_numbers_that_it_takes() -> None:
    known: dict[str, Any] = {**METHODS, **GUARDS}
    assert set(SPACES) == set(known)
    for name, ranges in SPACES.items():
        hints = get_type_hints(known[name])
        assert all(key == RATE or hints[key] is float for key in ranges), name
        assert len(ranges) <= 3, name
        if name in METHODS:
            assert ranges[RATE] == RATE_RANGE


def test_settings_change_ranges_and_fix_values() -> None:
    space, mistakes = space_of("npo", {"beta": [0.5, 2], "gamma": 3, "retain_loss_type": "KL"})
    assert mistakes == []
    assert space.ranges == {RATE: RATE_RANGE, "beta": SearchRange(0.5, 2.0)}
    assert space.fixed == {"gamma": 3, "retain_loss_type": "KL"}
    assert space_of("npo", {"beta": [2, 1]})[1] == ["search npo.beta: 2.0 should lie below 1.0"]
    assert space_of("rmu", {"trainable_params_regex": ["a", "b"]})[0].fixed == {"trainable_params_regex": ["a", "b"]}
    assert space_of("from_outside", {})[0].ranges == {RATE: RATE_RANGE}


def test_all_have_the_same_number_of_trials_where_there_is_something_to_choose() -> None:
    assert {trials_of(space_of(name, {})[0], 6) for name in SPACES if name != "prompt_guard"} == {6}
    assert trials_of(space_of("prompt_guard", {})[0], 6) == 1
