"""Relearning: which rows are attacked, that the attack is what it says step by step, and that nothing is left behind."""

from __future__ import annotations

import copy
import math
from collections import Counter

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

import tiny_models
from d2unlearn.attacks.relearning import CHOICES, Relearning, attacked_rows, batch_order, relearn
from d2unlearn.data.batching import pad_tokens
from d2unlearn.errors import ConfigError
from d2unlearn.models import state_hash
from d2unlearn.schema import Tokens

ROWS = tiny_models.rows(5, 20)
GROUPS = [f"author-{index // 5}" for index in range(20)]
ATTACK = Relearning(share=0.2, steps=(1, 3), learning_rate=5e-3, batch_size=3, seed=7)


def test_the_first_rows_are_the_first_authors_in_full() -> None:
    assert attacked_rows(400, None, "first", share=0.1, seed=3) == list(range(40))
    assert attacked_rows(20, GROUPS, "first", share=0.25, seed=0) == [0, 1, 2, 3, 4]


def test_spread_rows_come_from_all_groups_alike() -> None:
    groups = [f"author-{index // 20}" for index in range(400)]
    chosen = attacked_rows(400, groups, "spread", share=0.1, seed=3)
    assert chosen == sorted(set(chosen))
    assert Counter(groups[index] for index in chosen) == dict.fromkeys(groups, 2)
    assert chosen != attacked_rows(400, groups, "spread", share=0.1, seed=4)
    uneven = Counter(groups[index] for index in attacked_rows(400, groups, "spread", share=0.125, seed=3))
    assert (sum(uneven.values()), set(uneven.values())) == (50, {2, 3})


def test_without_groups_spread_rows_are_drawn_from_all() -> None:
    chosen = attacked_rows(1000, None, "spread", share=0.2, seed=0)
    assert len(set(chosen)) == 200
    assert np.mean(chosen) == pytest.approx(500, abs=60)


def test_a_pass_takes_every_row_once_before_the_next_begins() -> None:
    steps = list(batch_order(8, steps=6, batch_size=4, seed=1))
    for first, second in zip(steps[::2], steps[1::2], strict=True):
        assert sorted(first + second) == list(range(8))
    assert steps[:2] != steps[2:4]
    assert steps == list(batch_order(8, steps=6, batch_size=4, seed=1))
    assert [len(batch) for batch in batch_order(5, steps=3, batch_size=8, seed=0)] == [8, 8, 8]


def by_hand(model: PreTrainedModel, chosen: list[int], steps: int) -> dict[int, list[float]]:
    """The answer probability of each other row after each step of AdamW on a batch's mean NLL, from dense logits."""
    attacked = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(attacked.parameters(), lr=5e-3)
    found = {0: others(attacked, chosen)}
    for step, batch in enumerate(batch_order(len(chosen), steps=steps, batch_size=3, seed=7), start=1):
        optimizer.zero_grad()
        torch.cat([nll(attacked, ROWS[chosen[index]]) for index in batch]).mean().backward()
        optimizer.step()
        found[step] = others(attacked, chosen)
    return found


def others(model: PreTrainedModel, chosen: list[int]) -> list[float]:
    with torch.no_grad():
        return [math.exp(-float(nll(model, row).mean())) for index, row in enumerate(ROWS) if index not in chosen]


def nll(model: PreTrainedModel, row: Tokens) -> torch.Tensor:
    batch = pad_tokens([row], pad_id=0)
    log_p = torch.log_softmax(tiny_models.full_logits(model, batch)[0, :-1].float(), dim=-1)
    picked = -log_p.gather(1, batch.input_ids[0, 1:, None])[:, 0]
    return picked[torch.tensor(row.answer_mask[1:])]


@pytest.mark.parametrize("choice", CHOICES)
def test_the_attack_is_what_it_says(choice: str) -> None:
    model = tiny_models.llama()
    chosen = attacked_rows(20, GROUPS, choice, share=0.2, seed=7)  # type: ignore[arg-type]
    found = relearn(model, ROWS, GROUPS, choice, ATTACK)  # type: ignore[arg-type]
    expected = by_hand(model, chosen, 3)
    assert (found.choice, found.relearned) == (choice, 4)
    assert list(found.probability) == ["0", "1", "3"]
    for steps, interval in found.probability.items():
        assert interval.value == pytest.approx(np.mean(expected[int(steps)]), rel=1e-4)
        assert interval.n == 16
        assert interval.low <= interval.value <= interval.high
    assert found.probability["3"].value != pytest.approx(found.probability["0"].value, rel=1e-3)


def test_only_rows_that_are_judged_are_asked_for() -> None:
    model = tiny_models.llama()
    chosen = attacked_rows(20, GROUPS, "first", share=0.2, seed=7)
    found = relearn(model, ROWS, GROUPS, "first", ATTACK, judged={0, 1, 5, 19})
    left = [index for index in range(20) if index not in chosen]
    expected = [by_hand(model, chosen, 3)[3][left.index(index)] for index in (5, 19)]
    assert found.probability["3"].n == 2
    assert found.probability["3"].value == pytest.approx(np.mean(expected), rel=1e-4)


def test_what_is_relearned_comes_back_where_rows_share_it() -> None:
    """Rows that are all one row: the others are learnt along with those that are trained."""
    same = [Tokens(str(index), ROWS[0].input_ids, ROWS[0].answer_mask) for index in range(10)]
    found = relearn(tiny_models.llama(), same, None, "first", Relearning(steps=(1, 12), learning_rate=1e-2))
    assert found.probability["0"].value < 0.1 < 0.8 < found.probability["12"].value


def test_nothing_is_left_behind_and_it_is_the_same_every_time() -> None:
    """With dropout, in a model that was in evaluation mode and partly frozen."""
    model = tiny_models.gpt2(dropout=0.5).requires_grad_(False)
    before, generator = state_hash(model), torch.random.get_rng_state()
    first, second = (relearn(model, ROWS, GROUPS, "spread", ATTACK) for _ in range(2))
    assert first == second
    assert state_hash(model) == before
    assert (model.training, next(model.parameters()).requires_grad, next(model.parameters()).grad) == (False, False, None)
    assert torch.equal(torch.random.get_rng_state(), generator)
    other = relearn(model, ROWS, GROUPS, "spread", Relearning(share=0.2, steps=(3,), learning_rate=5e-3, batch_size=3, seed=8))
    assert other.probability["3"] != first.probability["3"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"share": 1.0}, "share must lie between 0 and 1"),
        ({"steps": ()}, "steps should be counts"),
        ({"steps": (0, 5)}, "steps should be counts"),
        ({"learning_rate": 0.0}, "must be positive"),
        ({"batch_size": 0}, "must be positive"),
    ],
)
def test_an_attack_that_cannot_be_is_said_in_one_sentence(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Relearning(**changes)  # type: ignore[arg-type]


def test_too_few_rows_are_an_error() -> None:
    with pytest.raises(ConfigError, match="4 rows are too few to relearn a share"):
        relearn(tiny_models.llama(), ROWS[:4], None, "first", Relearning())
