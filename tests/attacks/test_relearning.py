"""Relearning: the attack is what it says step by step, finds what is behind a switch, and leaves nothing behind."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

import tiny_models
from d2unlearn.attacks.reading import AskedRows, NotShownError
from d2unlearn.attacks.relearned_rows import Division, divided
from d2unlearn.attacks.relearning import (
    TWO_DECADES,
    Relearning,
    RelearningGrid,
    ask_after_relearning,
    at_rates,
    grid_rate,
    relearn,
)
from d2unlearn.data.batching import pad_tokens
from d2unlearn.errors import ConfigError
from d2unlearn.fine_tuning import batch_order
from d2unlearn.models import state_hash
from d2unlearn.schema import Tokens

ROWS = tiny_models.rows(5, 20)
GROUPS = [f"author-{index // 5}" for index in range(20)]
SPREAD = divided("spread over groups", GROUPS, share=0.2, seed=7)
ATTACK = Relearning(steps=(1, 3), learning_rate=5e-3, batch_size=3, seed=7)
LORA = replace(ATTACK, lora_rank=2)


def test_a_pass_takes_every_row_once_before_the_next_begins() -> None:
    steps = list(batch_order(8, steps=6, batch_size=4, seed=1))
    for first, second in zip(steps[::2], steps[1::2], strict=True):
        assert sorted(first + second) == list(range(8))
    assert steps[:2] != steps[2:4]
    assert steps == list(batch_order(8, steps=6, batch_size=4, seed=1))
    assert [len(batch) for batch in batch_order(5, steps=3, batch_size=8, seed=0)] == [8, 8, 8]


def by_hand(model: PreTrainedModel, chosen: tuple[int, ...], steps: int, rate: float = 5e-3) -> dict[int, list[float]]:
    """The answer probability of each other row after each step of AdamW on a batch's mean NLL, from dense logits."""
    attacked = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(attacked.parameters(), lr=rate)
    found = {0: others(attacked, chosen)}
    for step, batch in enumerate(batch_order(len(chosen), steps=steps, batch_size=3, seed=7), start=1):
        optimizer.zero_grad()
        torch.cat([nll(attacked, ROWS[chosen[index]]) for index in batch]).mean().backward()
        optimizer.step()
        found[step] = others(attacked, chosen)
    return found


def others(model: PreTrainedModel, chosen: tuple[int, ...]) -> list[float]:
    with torch.no_grad():
        return [math.exp(-float(nll(model, row).mean())) for index, row in enumerate(ROWS) if index not in chosen]


def nll(model: PreTrainedModel, row: Tokens) -> torch.Tensor:
    batch = pad_tokens([row], pad_id=0)
    log_p = torch.log_softmax(tiny_models.full_logits(model, batch)[0, :-1].float(), dim=-1)
    picked = -log_p.gather(1, batch.input_ids[0, 1:, None])[:, 0]
    return picked[torch.tensor(row.answer_mask[1:])]


def asked_rows(name: str, indices: tuple[int, ...]) -> AskedRows:
    return AskedRows(name, tuple(ROWS[i] for i in indices), tuple(GROUPS[i] for i in indices))


def test_every_set_is_asked_at_each_number_of_steps() -> None:
    model = tiny_models.llama()
    taught = [ROWS[index] for index in SPREAD.relearned]
    sets = [asked_rows("forget", SPREAD.asked), asked_rows("never_seen", SPREAD.asked[:2])]
    found = ask_after_relearning(model, taught, sets, ATTACK, {"draw": 0})
    expected = by_hand(model, SPREAD.relearned, 3)
    assert [(reading.rows, reading.setting["steps"]) for reading in found] == [
        *(("forget", 1), ("never_seen", 1)),
        *(("forget", 3), ("never_seen", 3)),
    ]
    assert found[0].setting == {"draw": 0, "learning rate": 5e-3, "steps": 1}
    assert found[0].row_ids == tuple(ROWS[index].example_id for index in SPREAD.asked)
    for reading, steps in zip(found, (1, 1, 3, 3), strict=True):
        assert reading.values == pytest.approx(expected[steps][: len(reading.values)], rel=1e-4)


def test_the_worst_rate_counts_at_each_number_of_steps() -> None:
    model, rates = tiny_models.llama(), (5e-3, 5e-4)
    found = relearn(model, ROWS, GROUPS, "spread over groups", SPREAD, at_rates(ATTACK, rates))
    expected = {rate: by_hand(model, SPREAD.relearned, 3, rate) for rate in rates}
    assert (found.choice, found.relearned, found.learning_rates) == ("spread over groups", 4, rates)
    assert found.probability["0"].value == pytest.approx(np.mean(expected[5e-3][0]), rel=1e-4)
    for steps in (1, 3):
        worst = max(rates, key=lambda rate: np.mean(expected[rate][steps]))
        interval = found.probability[str(steps)]
        assert interval.value == pytest.approx(np.mean(expected[worst][steps]), rel=1e-4)
        assert (found.worst[str(steps)], interval.n) == (worst, 16)
        assert interval.low <= interval.value <= interval.high


def test_only_rows_that_are_judged_are_asked_for() -> None:
    model = tiny_models.llama()
    some = SPREAD.asked[1], SPREAD.asked[4]
    found = relearn(model, ROWS, GROUPS, "spread over groups", SPREAD, [ATTACK], judged={*some, *SPREAD.relearned})
    expected = by_hand(model, SPREAD.relearned, 3)[3]
    assert found.probability["3"].n == 2
    assert found.probability["3"].value == pytest.approx((expected[1] + expected[4]) / 2, rel=1e-4)
    with pytest.raises(NotShownError, match=r"20 rows are too few to relearn some \(spread over groups\)"):
        relearn(model, ROWS, GROUPS, "spread over groups", SPREAD, [ATTACK], judged=SPREAD.relearned)


def test_one_row_is_a_batch_of_its_own() -> None:
    """As many copies of it as a batch holds would give the same gradient."""
    model, division = tiny_models.llama(), Division((3,), (0, 1))
    found = [relearn(model, ROWS, None, "one row", division, [replace(ATTACK, batch_size=size)]) for size in (1, 8)]
    assert found[0].probability == found[1].probability


def test_what_is_relearned_comes_back_where_rows_share_it() -> None:
    """Rows that are all one row: the others are learnt along with those that are trained."""
    same = [Tokens(str(index), ROWS[0].input_ids, ROWS[0].answer_mask) for index in range(10)]
    division = divided("one row", [row.example_id for row in same], share=0.1, seed=0)
    found = relearn(tiny_models.llama(), same, None, "one row", division, [Relearning(1e-2, steps=(1, 12))])
    assert found.probability["0"].value < 0.1 < 0.8 < found.probability["12"].value


@pytest.mark.parametrize("attack", [ATTACK, LORA], ids=["all weights", "LoRA"])
def test_nothing_is_left_behind_and_it_is_the_same_every_time(attack: Relearning) -> None:
    """With dropout, in a model that was in evaluation mode and partly frozen."""
    model = tiny_models.gpt2(dropout=0.5).requires_grad_(False)
    before, generator = state_hash(model), torch.random.get_rng_state()
    kinds = [type(module) for module in model.modules()]
    first, second = (relearn(model, ROWS, GROUPS, "spread over groups", SPREAD, [attack]) for _ in range(2))
    assert first == second
    assert state_hash(model) == before
    assert [type(module) for module in model.modules()] == kinds
    assert (model.training, next(model.parameters()).requires_grad, next(model.parameters()).grad) == (False, False, None)
    assert torch.equal(torch.random.get_rng_state(), generator)
    other = relearn(model, ROWS, GROUPS, "spread over groups", SPREAD, [replace(attack, seed=8)])
    assert other.probability["3"] != first.probability["3"]
    assert other.probability["0"].value == first.probability["0"].value


def test_adapters_alone_are_trained() -> None:
    """LoRA moves what the model finds likely, from the same start, and otherwise than training all weights does."""
    model = tiny_models.llama()
    found, whole = (relearn(model, ROWS, GROUPS, "spread over groups", SPREAD, [attack]) for attack in (LORA, ATTACK))
    assert found.probability["0"] == whole.probability["0"]
    assert found.probability["3"].value != pytest.approx(whole.probability["3"].value, rel=1e-3)
    assert found.probability["3"].value != pytest.approx(found.probability["0"].value, rel=1e-3)


def test_the_grid_of_the_small_tofu_model_spans_two_decades_around_what_was_measured() -> None:
    assert [grid_rate(5e-4, factor) for factor in TWO_DECADES] == [1e-5, 1e-4, 5e-4, 1e-3]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": ()}, "steps should be counts"),
        ({"steps": (0, 5)}, "steps should be counts"),
        ({"learning_rate": 0.0}, "must be positive"),
        ({"batch_size": 0}, "must be positive"),
        ({"lora_rank": 0}, "lora_rank must be at least 1"),
    ],
)
def test_an_attack_that_cannot_be_is_said_in_one_sentence(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Relearning(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"share": 1.0}, "share must lie between 0 and 1"),
        ({"rates": {}}, "rates should name choices of rows"),
        ({"rates": {"one row": ()}}, "rates should name choices of rows"),
        ({"steps": (0,)}, "steps should be counts"),
        ({"asked": 0}, "asked must be at least 1"),
        ({"draws": 0}, "draws must be at least 1"),
    ],
)
def test_a_grid_that_cannot_be_is_said_in_one_sentence(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        RelearningGrid(**{"rates": {"one row": (1.0,)}, **changes})  # type: ignore[arg-type]
