"""Weights on integer grids: by hand, within the bounds, and what stays to the last bit."""

from __future__ import annotations

import pytest
import torch

from d2unlearn.rounding import rounded_to_integers


def test_a_symmetric_grid_by_hand() -> None:
    """Seven steps each way to the largest magnitude of a group of four: steps of 0.1, then of 0.2."""
    weight = torch.tensor([[0.7, -0.32, 0.12, 0.0, 1.4, 0.33, -0.86, 0.05]])
    expected = torch.tensor([[0.7, -0.3, 0.1, 0.0, 1.4, 0.4, -0.8, 0.0]])
    torch.testing.assert_close(rounded_to_integers(weight, 4, group_size=4), expected)


def test_an_asymmetric_grid_by_hand() -> None:
    """Three steps from the smallest to the largest, zero among them: -0.3, 0, 0.3, 0.6; then 0, 0.3, 0.6, 0.9."""
    weight = torch.tensor([[-0.3, 0.1, 0.6, 0.3, 0.7, 0.9]])
    expected = torch.tensor([[-0.3, 0.0, 0.6, 0.3, 0.6, 0.9]])
    torch.testing.assert_close(rounded_to_integers(weight, 2, group_size=3, symmetric=False), expected)


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_last_group_is_shorter_and_keeps_its_own_grid(symmetric: bool) -> None:
    weight = torch.tensor([[8.0, -3.2, 1.0, 0.5, 0.003]])
    made = rounded_to_integers(weight, 8, group_size=4, symmetric=symmetric)
    assert made[0, 4] == pytest.approx(0.003, rel=1e-6)
    assert torch.equal(made[:, :4], rounded_to_integers(weight[:, :4], 8, group_size=4, symmetric=symmetric))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_no_weight_moves_by_more_than_half_a_step_nor_by_one_at_the_ends_of_an_asymmetric_grid(
    bits: int, symmetric: bool
) -> None:
    weight = torch.randn(24, 64, generator=torch.Generator().manual_seed(bits))
    groups = weight.reshape(24, 4, 16)
    largest, smallest = groups.amax(dim=-1).clamp(min=0), groups.amin(dim=-1).clamp(max=0)
    step = groups.abs().amax(dim=-1) / (2 ** (bits - 1) - 1) if symmetric else (largest - smallest) / (2**bits - 1)
    moved = (rounded_to_integers(weight, bits, group_size=16, symmetric=symmetric).reshape(24, 4, 16) - groups).abs()
    assert (moved.amax(dim=-1) <= step * (0.5 if symmetric else 1.0) + 1e-6).all()
    assert moved.max() > 0.4 * step.min()


def test_what_lies_on_the_grid_stays_to_the_last_bit() -> None:
    steps = torch.randint(-127, 128, (6, 64), generator=torch.Generator().manual_seed(0)).float()
    steps[:, ::32] = 127
    assert torch.equal(rounded_to_integers(steps / 64, 8, group_size=32), steps / 64)
    steps[:, ::32], steps[:, 1::32] = -128, 127
    assert torch.equal(rounded_to_integers(steps / 64, 8, group_size=32, symmetric=False), steps / 64)
    assert torch.equal(rounded_to_integers(torch.zeros(2, 5), 4, group_size=2), torch.zeros(2, 5))


def test_other_precisions_stay_what_they_are() -> None:
    assert rounded_to_integers(torch.ones(2, 4, dtype=torch.bfloat16), 4, group_size=4).dtype == torch.bfloat16
