"""Which positions a method may look at: worked by hand on one small batch."""

from __future__ import annotations

import pytest
import torch

import tiny_models
from d2unlearn.errors import ConfigError
from d2unlearn.likelihood import IGNORE, next_labels, predicting_mask
from d2unlearn.observation import Batch, observe
from d2unlearn.positions import Every, Labelled, Positions, Predicting
from d2unlearn.quantities import Correct, LogSumExp, Nll

X = IGNORE
LABELS = torch.tensor([[X, X, 5, 6, 7, X], [8, X, 9, X, X, X], [X, X, X, X, X, X]])
"""An answer of three tokens; one of two, the first of them at the start, which nothing predicts; none."""


def places(positions: Positions) -> list[list[int]]:
    return [row.nonzero().flatten().tolist() for row in positions.mask(LABELS)]


def test_the_predicting_positions_stand_one_before_the_answer_tokens() -> None:
    assert places(Predicting()) == [[1, 2, 3], [1], []]
    assert places(Predicting(skip=1)) == [[2, 3], [], []]
    assert places(Predicting(skip=9)) == [[], [], []]


def test_the_labelled_positions_are_the_answer_tokens_own() -> None:
    assert places(Labelled()) == [[2, 3, 4], [0, 2], []]


def test_every_position_may_leave_out_the_last_column() -> None:
    assert places(Every()) == [list(range(6))] * 3
    assert places(Every(but_last=True)) == [list(range(5))] * 3


def test_what_a_position_should_predict() -> None:
    assert next_labels(LABELS).tolist() == [[X, 5, 6, 7, X, X], [X, 9, X, X, X, X], [X] * 6]
    assert next_labels(LABELS)[predicting_mask(LABELS)].tolist() == [5, 6, 7, 9]


@pytest.mark.parametrize("positions", [Predicting(), Predicting(skip=2), Labelled(), Every(), Every(but_last=True)], ids=repr)
def test_only_positions_with_targets_say_that_they_have_them(positions: Positions) -> None:
    targets = next_labels(LABELS)[positions.mask(LABELS)]
    assert bool((targets != IGNORE).all()) == positions.has_targets


def test_values_are_those_of_the_models_own_logits_at_the_positions() -> None:
    model = tiny_models.llama()
    ids = torch.arange(4, 16).reshape(2, 6)
    labels = torch.tensor([[X, X, 5, 6, 7, X], [X, 8, 9, X, X, X]])
    batch = Batch(ids, torch.ones_like(ids), labels)
    energies = tiny_models.full_logits(model, batch).logsumexp(-1)
    for positions in (Predicting(), Predicting(skip=1), Labelled(), Every(), Every(but_last=True)):
        found = observe(model, {"forget": batch}, {"forget": [LogSumExp()]}, positions={"forget": positions})
        torch.testing.assert_close(found["forget"][LogSumExp()], energies[positions.mask(labels)])


def test_roles_of_one_pass_may_look_at_different_positions() -> None:
    model = tiny_models.llama()
    first = Batch(torch.arange(4, 10).unsqueeze(0), torch.ones(1, 6, dtype=torch.long), LABELS[:1])
    second = Batch(torch.arange(4, 8).unsqueeze(0), torch.ones(1, 4, dtype=torch.long), torch.tensor([[X, X, 5, 6]]))
    wanted = {"forget": [LogSumExp()], "retain": [LogSumExp()]}
    found = observe(model, {"forget": first, "retain": second}, wanted, positions={"retain": Every()})
    torch.testing.assert_close(found["forget"][LogSumExp()], tiny_models.full_logits(model, first).logsumexp(-1)[0, [1, 2, 3]])
    torch.testing.assert_close(found["retain"][LogSumExp()], tiny_models.full_logits(model, second).logsumexp(-1)[0])


@pytest.mark.parametrize("quantity", [Nll(), Correct()], ids=repr)
def test_a_likelihood_where_nothing_is_predicted_is_an_error(quantity: Nll | Correct) -> None:
    batch = Batch(torch.arange(4, 10).unsqueeze(0), torch.ones(1, 6, dtype=torch.long), LABELS[:1])
    with pytest.raises(ConfigError, match="not every position there predicts an answer token"):
        observe(tiny_models.llama(), {"forget": batch}, {"forget": [quantity]}, positions={"forget": Labelled()})
