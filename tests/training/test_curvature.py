"""Steps that spare retained rows, worked by hand and against a plain re-statement."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from d2unlearn.training.curvature import (
    Moments,
    damped_inverse,
    recorded_moments,
    spared,
    step_against,
    without_top_components,
)


def test_the_largest_components_are_left_out() -> None:
    matrix = torch.diag(torch.tensor([1.0, 5.0, 3.0]))
    torch.testing.assert_close(without_top_components(matrix, 1), torch.diag(torch.tensor([1.0, 0.0, 3.0])))
    torch.testing.assert_close(without_top_components(matrix, 0), matrix)
    torch.testing.assert_close(without_top_components(matrix, 3), torch.zeros(3, 3))


def test_the_inverse_is_of_the_moment_with_a_mean_eigenvalue_of_one() -> None:
    """diag(2, 6) scaled is diag(0.5, 1.5); damped by 0.5: diag(1, 2). What never was is left as it is."""
    torch.testing.assert_close(damped_inverse(torch.diag(torch.tensor([2.0, 6.0])), 0.5), torch.diag(torch.tensor([1.0, 0.5])))
    torch.testing.assert_close(damped_inverse(torch.zeros(2, 2), 1.0), torch.eye(2) / 2)


def test_directions_that_retained_rows_need_shrink() -> None:
    """By hand: with damping 0.5 the factors are (1, 1/2) for outputs and (1/2, 1) for inputs."""
    moments = Moments(inputs=torch.diag(torch.tensor([6.0, 2.0])), gradients=torch.diag(torch.tensor([1.0, 3.0])))
    found = spared(torch.ones(2, 2), moments, dropped=0, damping=0.5)
    torch.testing.assert_close(found, torch.tensor([[0.5, 1.0], [0.25, 0.5]]))


def test_a_step_is_a_share_of_all_weights_together() -> None:
    """|weights| = sqrt(9 + 16) = 5 and |directions| = sqrt(9 + 16): a tenth of 5 along (3, 4) / 5."""
    weights = [torch.tensor([[3.0]]), torch.tensor([[4.0]])]
    step_against(weights, [torch.tensor([[3.0]]), torch.tensor([[-4.0]])], 0.1)
    torch.testing.assert_close(weights, [torch.tensor([[2.7]]), torch.tensor([[4.4]])])
    step_against(weights, [torch.zeros(1, 1)] * 2, 0.1)
    torch.testing.assert_close(weights, [torch.tensor([[2.7]]), torch.tensor([[4.4]])])


def test_moments_are_sums_over_the_positions_that_count() -> None:
    torch.manual_seed(0)
    layer, states, counted = nn.Linear(3, 2), torch.randn(2, 4, 3), torch.tensor([[True] * 4, [True, True, False, False]])
    with recorded_moments({"layer": layer}, lambda: counted) as found:
        output = layer(states.requires_grad_())
        (output**3).sum().backward()
    gradients = 3 * output.detach() ** 2
    kept = [(b, t) for b in range(2) for t in range(4) if counted[b, t]]
    torch.testing.assert_close(found["layer"].inputs, sum(torch.outer(states[i], states[i]) for i in kept).detach())
    torch.testing.assert_close(found["layer"].gradients, sum(torch.outer(gradients[i], gradients[i]) for i in kept))
    layer(states).sum().backward()
    squares = float(sum(states[i].detach().square().sum() for i in kept))
    assert found["layer"].inputs.trace().item() == pytest.approx(squares, rel=1e-5)
