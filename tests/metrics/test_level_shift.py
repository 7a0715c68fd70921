"""The share of a change that is the level's, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from d2unlearn.energy import centred_energy, free_energy
from d2unlearn.metrics.level_shift import NO_CHANGE, NOT_MEASURED, LogitShape, level_shift, level_warning

BEFORE = LogitShape(mean_logit=-1.7, centred_energy=-23.2, entropy=1.58)


def of(logits: torch.Tensor) -> LogitShape:
    p = logits.softmax(-1)
    values = (logits.mean(-1), centred_energy(logits), -(p * p.log()).sum(-1))
    return LogitShape(*(float(value.mean()) for value in values))


def test_a_pure_shift_is_all_level_and_flattening_without_one_is_none_of_it() -> None:
    logits = torch.tensor([[6.0, -2.0, -4.0], [9.0, -3.0, -6.0]], dtype=torch.float64)
    assert level_shift(of(logits), of(logits - 4)).share == pytest.approx(1.0)
    assert level_shift(of(logits), of(logits * 0.1)).share == pytest.approx(0.0, abs=1e-12)
    assert of(logits).energy == pytest.approx(float(free_energy(logits).mean()))


def test_the_trial_s_numbers_give_its_share() -> None:
    """14.6 nats of mean logit beside 3.1 of centred energy: 14.6 / 17.7."""
    after = LogitShape(-16.3, -20.1, 2.79)
    assert level_shift(BEFORE, after).share == pytest.approx(14.6 / 17.7)
    assert level_warning(BEFORE, after, "at the forget positions") == (
        "82% of the change at the forget positions is the level of the logits (mean logit -1.7 to -16.3, centred energy -23.2 "
        "to -20.1): the method moved the level and not the knowledge"
    )


def test_half_is_no_alarm_and_a_fall_counts_as_much_as_a_rise() -> None:
    start, both = LogitShape(-1.5, -23.25, 2.0), LogitShape(-2.5, -24.25, 1.0)
    assert level_shift(start, both).share == 0.5
    assert level_warning(start, both, "") is None
    assert level_shift(BEFORE, LogitShape(-0.7, -22.9, 1.0)).share == pytest.approx(1.0 / 1.3)


@pytest.mark.parametrize(
    ("level", "shape", "share"), [(0.09, -0.09, math.nan), (0.11, 0.0, 1.0), (0.0, 0.11, 0.0), (0.05, 0.15, 0.25)]
)
def test_a_change_under_a_tenth_of_a_nat_of_both_has_no_share_and_says_why(level: float, shape: float, share: float) -> None:
    found = level_shift(LogitShape(0, 0, 0), LogitShape(level, shape, 0))
    assert found.share == pytest.approx(share, nan_ok=True)
    assert found.reason == (NO_CHANGE if math.isnan(share) else "")


def test_what_was_not_measured_has_no_share_and_says_why() -> None:
    found = level_shift(BEFORE, LogitShape(math.nan, -20.0, 1.0))
    assert math.isnan(found.share)
    assert found.reason == NOT_MEASURED
    assert level_warning(BEFORE, LogitShape(math.nan, -20.0, 1.0), "") is None
