"""The free energy and its margins: by hand, against dense copies, what moves them and what does not, and extremes."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from d2unlearn.energy import (
    centred_energy,
    free_energy,
    logsumexp,
    reference_margins,
    selected_count,
    selected_logsumexp,
)
from d2unlearn.errors import ConfigError
from reference import dense
from reference.recorder import MadeTensors

ONE_TO_FOUR = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64).log()
"""Logits whose exponentials are 1, 2, 3 and 4."""


def random_logits(*shape: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(function: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    leaf = logits.clone().requires_grad_()
    function(leaf).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


def test_the_energy_is_minus_the_log_of_the_summed_exponentials() -> None:
    assert free_energy(ONE_TO_FOUR).item() == pytest.approx(-math.log(10))
    assert logsumexp(ONE_TO_FOUR).item() == pytest.approx(math.log(10))
    assert gradient(free_energy, ONE_TO_FOUR).tolist() == pytest.approx([-0.1, -0.2, -0.3, -0.4])


def test_the_temperature_divides_inside_and_multiplies_outside() -> None:
    """At T = 1/2 exponentials are squared: 1 + 4 + 9 + 16 = 30."""
    assert free_energy(ONE_TO_FOUR, 0.5).item() == pytest.approx(-0.5 * math.log(30))
    assert logsumexp(ONE_TO_FOUR, 0.5).item() == pytest.approx(math.log(30))
    found = gradient(lambda z: free_energy(z, 0.5), ONE_TO_FOUR)
    assert found.tolist() == pytest.approx([-1 / 30, -4 / 30, -9 / 30, -16 / 30])


def test_equal_logits_have_the_energy_of_knowing_nothing() -> None:
    for temperature in (0.5, 1.0, 3.0):
        assert free_energy(torch.zeros(7), temperature).item() == pytest.approx(-temperature * math.log(7))
        assert free_energy(torch.full((7,), 5.0), temperature).item() == pytest.approx(-5 - temperature * math.log(7))


def test_a_single_logit_is_its_own_energy_negated() -> None:
    assert free_energy(torch.tensor([[3.0], [-2.0]])).tolist() == [-3.0, 2.0]
    assert centred_energy(torch.tensor([[3.0], [-2.0]])).tolist() == [0.0, 0.0]


def test_a_cold_energy_is_minus_the_largest_logit() -> None:
    logits = random_logits(5, 40)
    torch.testing.assert_close(free_energy(logits, 1e-6), -logits.amax(-1), rtol=0, atol=1e-5)


def test_energy_falls_when_any_logit_grows() -> None:
    logits = random_logits(5, 40)
    assert bool((gradient(free_energy, logits) < 0).all())


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("shape", [(9,), (4, 9), (2, 3, 50)])
def test_values_and_gradients_are_those_of_the_naive_formula(shape: tuple[int, ...], temperature: float) -> None:
    logits = random_logits(*shape)
    torch.testing.assert_close(free_energy(logits, temperature), dense.energy(logits, temperature))
    ours = gradient(lambda z: free_energy(z, temperature), logits)
    torch.testing.assert_close(ours, gradient(lambda z: dense.energy(z, temperature), logits))


@pytest.mark.parametrize("shift", [-30.0, 0.25, 1000.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_a_constant_moves_the_energy_and_leaves_the_centred_energy(shift: float, temperature: float) -> None:
    logits = random_logits(6, 30)
    torch.testing.assert_close(free_energy(logits + shift, temperature), free_energy(logits, temperature) - shift)
    torch.testing.assert_close(centred_energy(logits + shift, temperature), centred_energy(logits, temperature))


def test_the_order_of_the_vocabulary_does_not_matter() -> None:
    logits = random_logits(6, 30)
    mixed = logits[:, torch.randperm(30, generator=torch.Generator().manual_seed(0))]
    torch.testing.assert_close(free_energy(mixed), free_energy(logits))
    torch.testing.assert_close(centred_energy(mixed), centred_energy(logits))
    torch.testing.assert_close(reference_margins(mixed, 0.3), reference_margins(logits, 0.3))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_centred_energy_is_the_distance_from_uniform(temperature: float) -> None:
    """E_c + T log V = -T KL(uniform || softmax(z / T)): at most zero, and zero for equal logits alone."""
    logits = random_logits(50, 8, scale=2.0)
    log_p = (logits / temperature).log_softmax(-1)
    divergence = (-math.log(8) - log_p).mean(-1)
    excess = centred_energy(logits, temperature) + temperature * math.log(8)
    torch.testing.assert_close(excess, -temperature * divergence)
    assert excess.max().item() < 0
    assert centred_energy(torch.full((8,), 3.0), temperature).item() == pytest.approx(-temperature * math.log(8))
    ours = gradient(lambda z: centred_energy(z, temperature), logits)
    torch.testing.assert_close(ours, 1 / 8 - log_p.exp())


def test_margins_by_hand() -> None:
    """Half of four logits: exponentials 3 + 4 and two zeros (e^0 = 1 each) above, 1 + 2 and two zeros below."""
    m_in, m_out = reference_margins(ONE_TO_FOUR, 0.5)
    assert m_in.item() == pytest.approx(-math.log(3 + 4 + 1 + 1))
    assert m_out.item() == pytest.approx(-math.log(1 + 2 + 1 + 1))
    m_in, m_out = reference_margins(ONE_TO_FOUR, 0.25, temperature=0.5)
    assert m_in.item() == pytest.approx(-math.log(16 + 3))
    assert m_out.item() == pytest.approx(-math.log(1 + 3))


def test_margins_are_in_units_of_the_temperature() -> None:
    """Where the left-out logits are zero, m_in is the reference's own E / T."""
    logits = random_logits(5, 20).abs() + 1
    logits[:, 4:] = 0
    m_in, _ = reference_margins(logits, 0.2, temperature=2.0)
    torch.testing.assert_close(m_in, free_energy(logits, 2.0) / 2.0)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("ratio", [0.05, 0.1, 0.3, 0.5, 0.99])
@pytest.mark.parametrize("shape", [(100,), (7, 257), (2, 3, 120)])
def test_margins_are_those_of_dense_zero_filled_copies(shape: tuple[int, ...], ratio: float, temperature: float) -> None:
    logits = random_logits(*shape, seed=1)
    found, expected = reference_margins(logits, ratio, temperature), dense.margins(logits, ratio, temperature)
    torch.testing.assert_close(tuple(found), expected)


def test_tied_logits_count_as_often_as_they_are_kept() -> None:
    logits = torch.tensor([2.0, 2.0, 2.0, -1.0, -1.0], dtype=torch.float64)
    m_in, m_out = reference_margins(logits, 0.4)
    assert m_in.item() == pytest.approx(-math.log(2 * math.exp(2) + 3))
    assert m_out.item() == pytest.approx(-math.log(2 * math.exp(-1) + 3))


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("zero_fill", [True, False])
def test_the_gradient_of_a_selection_reaches_the_selected_alone(largest: bool, zero_fill: bool) -> None:
    logits = random_logits(6, 40)
    ours = gradient(lambda z: selected_logsumexp(z, 0.2, 2.0, largest=largest, zero_fill=zero_fill), logits)
    naive = gradient(lambda z: dense.selected(z, 0.2, 2.0, largest=largest, zero_fill=zero_fill), logits)
    torch.testing.assert_close(ours, naive)
    assert (ours != 0).sum(-1).tolist() == [8] * 6


def test_the_zero_fill_is_a_method_of_its_own() -> None:
    """With it m_out is nearly -log(V - k), whatever the reference thinks; without it the bound lies nats higher."""
    logits = random_logits(20, 32000, scale=2.0)
    filled = -selected_logsumexp(logits, 0.1, largest=False)
    bare = -selected_logsumexp(logits, 0.1, largest=False, zero_fill=False)
    torch.testing.assert_close(filled, torch.full_like(filled, -math.log(28800)), rtol=0, atol=0.01)
    assert bool(((bare - filled - 6).abs() < 1.5).all())


def test_margins_make_no_dense_copies() -> None:
    logits = random_logits(16, 1000).float()
    with MadeTensors() as made:
        reference_margins(logits, 0.1)
    assert made.largest == 16 * 100


@pytest.mark.parametrize(
    ("ratio", "width", "k"),
    [(0.1, 257, 25), (0.3, 257, 77), (0.5, 2, 1), (0.1, 10, 1), (0.999, 1000, 999), (0.29, 100, int(0.29 * 100))],
)
def test_k_is_the_floor_of_ratio_times_vocabulary(ratio: float, width: int, k: int) -> None:
    assert selected_count(ratio, width) == k


@pytest.mark.parametrize(("ratio", "k"), [(0.0, 0), (0.1, 0), (1.0, 9), (1.5, 13), (-0.2, -2)])
def test_a_ratio_that_keeps_none_or_all_is_an_error_that_proposes_one(ratio: float, k: int) -> None:
    with pytest.raises(ConfigError) as error:
        reference_margins(torch.zeros(2, 9), ratio)
    assert str(error.value) == f"ratio {ratio} keeps {k} of 9 logits; choose one that keeps 1 to 8, e.g. 0.17"


@pytest.mark.parametrize("width", [*range(2, 40), 257, 128256])
def test_the_ratio_that_the_error_proposes_works(width: int) -> None:
    with pytest.raises(ConfigError) as error:
        selected_count(0.0, width)
    assert 1 <= selected_count(float(str(error.value).rpartition(" ")[2]), width) < width


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize(
    "function",
    [free_energy, centred_energy, logsumexp, lambda z, t: reference_margins(z, 0.5, t)],
    ids=["free_energy", "centred_energy", "logsumexp", "reference_margins"],
)
def test_a_temperature_that_is_none_is_an_error(function: Callable[[Tensor, float], object], temperature: float) -> None:
    with pytest.raises(ConfigError, match=f"temperature must be a positive number, not {temperature}"):
        function(torch.zeros(2, 9), temperature)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_raised_to_float32_before_anything_is_summed(dtype: torch.dtype) -> None:
    """A sum in half precision would lose most of 50,000 equal terms."""
    logits = (random_logits(4, 50000) - 20).to(dtype)
    for function in (free_energy, centred_energy, lambda z: reference_margins(z, 0.1).m_out):
        found = function(logits)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, function(logits.double()).float(), rtol=1e-6, atol=1e-5)
    assert free_energy(torch.zeros(3, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("size", [1e4, -1e4, 1e30])
def test_large_logits_neither_overflow_nor_vanish(size: float) -> None:
    logits = torch.tensor([size, 0.0, 0.0])
    assert free_energy(logits).item() == pytest.approx(-size if size > 0 else -math.log(2))
    expected = [-1.0, 0.0, 0.0] if size > 0 else [0.0, -0.5, -0.5]
    assert gradient(free_energy, logits).tolist() == pytest.approx(expected)
    m_in, m_out = reference_margins(logits, 0.34)
    assert m_in.item() == pytest.approx(-size if size > 0 else -math.log(3))
    assert m_out.item() == pytest.approx(-math.log(3) if size > 0 else -math.log(2))


def test_a_token_that_is_ruled_out_counts_for_nothing() -> None:
    logits = torch.cat([ONE_TO_FOUR, torch.tensor([-math.inf, -math.inf])])
    assert free_energy(logits).item() == pytest.approx(-math.log(10))
    assert gradient(free_energy, logits).tolist() == pytest.approx([-0.1, -0.2, -0.3, -0.4, 0, 0])


def test_no_positions_have_no_energies() -> None:
    empty = torch.zeros(0, 9)
    assert free_energy(empty).shape == centred_energy(empty).shape == reference_margins(empty, 0.5).m_in.shape == (0,)
