"""The label shift, counted out token by token, and the likelihood of a token: by hand, naive, and where it is nearly sure."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from d2unlearn.energy import at_least_float32
from d2unlearn.likelihood import IGNORE, next_labels, predicting_mask
from d2unlearn.quantities import Chunk, Nll

X = IGNORE


def random_labels(seed: int, rows: int = 5, width: int = 9) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, 50, (rows, width), generator=generator)
    labels[torch.rand(rows, width, generator=generator) < 0.5] = IGNORE
    return labels


def answer_targets(labels: Tensor) -> list[int]:
    """The answer tokens that are predicted, row by row."""
    return next_labels(labels)[predicting_mask(labels)].tolist()


def answer_rows(labels: Tensor) -> list[int]:
    """For each of them the row that it belongs to."""
    return predicting_mask(labels).nonzero()[:, 0].tolist()


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """`Nll` at positions of any shape."""
    flat = at_least_float32(logits).reshape(-1, logits.shape[-1])
    return Nll().of(Chunk(flat, targets.reshape(-1))).reshape(targets.shape)


def counted(labels: Tensor) -> list[tuple[int, int, int]]:
    """(row, position, token): the token at t + 1 is an answer token, predicted at t."""
    found = []
    for row, line in enumerate(labels.tolist()):
        for position in range(len(line) - 1):
            if line[position + 1] != -100:
                found.append((row, position, line[position + 1]))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_positions_rows_and_targets_are_in_one_order(seed: int) -> None:
    labels = random_labels(seed)
    expected = counted(labels)
    assert predicting_mask(labels).nonzero().tolist() == [[row, position] for row, position, _ in expected]
    assert answer_rows(labels) == [row for row, _, _ in expected]
    assert answer_targets(labels) == [token for _, _, token in expected]


def test_the_last_prompt_position_predicts_the_first_answer_token() -> None:
    labels = torch.tensor([[X, X, X, 7, 8, X]])
    assert predicting_mask(labels).tolist() == [[False, False, True, True, False, False]]


def test_a_token_at_the_start_is_predicted_by_nothing() -> None:
    labels = torch.tensor([[5, 6], [5, X]])
    assert answer_targets(labels) == [6]
    assert answer_rows(labels) == [0]


@pytest.mark.parametrize("labels", [torch.full((2, 4), X), torch.tensor([[3], [4]]), torch.zeros(0, 4, dtype=torch.long)])
def test_without_answers_there_is_nothing(labels: Tensor) -> None:
    assert predicting_mask(labels).shape == labels.shape
    assert int(predicting_mask(labels).sum()) == 0
    assert answer_targets(labels) == answer_rows(labels) == []


def test_a_token_id_of_zero_is_an_answer_token() -> None:
    assert answer_targets(torch.tensor([[X, 0, 0]])) == [0, 0]


def test_the_shift_does_not_write_into_the_labels() -> None:
    labels = random_labels(0)
    before = labels.clone()
    predicting_mask(labels), next_labels(labels), answer_targets(labels)
    assert torch.equal(labels, before)


def test_nll_by_hand() -> None:
    """Probabilities 1/6, 2/6 and 3/6."""
    logits = torch.tensor([[0.0, math.log(2), math.log(3)]] * 3, dtype=torch.float64, requires_grad=True)
    nll = token_nll(logits, torch.tensor([0, 1, 2]))
    assert nll.tolist() == pytest.approx([math.log(6), math.log(3), math.log(2)])
    nll.sum().backward()
    assert logits.grad is not None
    expected = torch.tensor([[1 / 6 - 1, 2 / 6, 3 / 6], [1 / 6, 2 / 6 - 1, 3 / 6], [1 / 6, 2 / 6, 3 / 6 - 1]])
    torch.testing.assert_close(logits.grad, expected.double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(12,), (3, 4), (2, 3, 2)])
def test_nll_is_the_cross_entropy_whatever_is_added_to_the_logits(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(*shape, 40, generator=generator, dtype=torch.float64)
    targets = torch.randint(40, shape, generator=generator)
    expected = cross_entropy(logits.reshape(-1, 40), targets.reshape(-1), reduction="none").reshape(shape)
    torch.testing.assert_close(token_nll(logits, targets), expected)
    torch.testing.assert_close(token_nll(logits - 30, targets), expected)


@pytest.mark.parametrize("shift", [0.0, 1000.0, -1000.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_token_that_is_nearly_sure_keeps_its_digits(dtype: torch.dtype, shift: float) -> None:
    """-log p = log(1 + 2 e^-8) = 6.7e-4: float32 has its digits beside 1, but not beside 1000."""
    logits = torch.tensor([[8.0, 0.0, 0.0]], dtype=dtype) + shift
    nll = token_nll(logits, torch.tensor([0]))
    assert nll.dtype == torch.float32
    assert nll.item() == pytest.approx(math.log1p(2 * math.exp(-8)), rel=1e-4)
    assert token_nll(logits, torch.tensor([1])).item() == pytest.approx(8 + math.log1p(2 * math.exp(-8)), rel=1e-6)


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_large_logits_give_finite_likelihoods(size: float) -> None:
    logits = torch.tensor([[size, 0.0, -size]])
    assert token_nll(logits, torch.tensor([0])).item() == 0
    assert token_nll(logits, torch.tensor([1])).item() == pytest.approx(size)
    assert token_nll(-logits, torch.tensor([0])).item() == pytest.approx(2 * size)
