"""Which rows make up a step: whole effective batches, every row's turn, and nothing but (seed, epoch, index) decides."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

import tiny_models
from d2unlearn.data.batching import pad_tokens
from d2unlearn.training.sampling import EpochSampler, PairPlan

from .runs import FORGET, RETAIN, trainer

SIZES = [(8, 13, 4), (10, 3, 4), (3, 20, 8), (1, 1, 5), (40, 7, 32)]


def visits(plan: PairPlan, epoch: int) -> list[tuple[int, int]]:
    return [tuple(plan[epoch * len(plan) + index]) for index in range(len(plan))]  # type: ignore[misc]


@pytest.mark.parametrize(("forget", "retain", "batch"), SIZES)
def test_an_epoch_is_whole_effective_batches_and_visits_every_forget_row(forget: int, retain: int, batch: int) -> None:
    plan = PairPlan(forget, retain, effective_batch=batch, seed=0)
    assert len(plan) % batch == 0
    assert len(plan) - batch < forget <= len(plan)
    for epoch in range(3):
        order = [pair[0] for pair in visits(plan, epoch)]
        assert sorted(order[:forget]) == list(range(forget))
        assert order[forget:] == [order[i % forget] for i in range(forget, len(plan))]


@pytest.mark.parametrize(("forget", "retain", "batch"), SIZES)
def test_every_retained_row_has_its_turn_before_any_has_a_second_also_across_epochs(
    forget: int, retain: int, batch: int
) -> None:
    plan = PairPlan(forget, retain, effective_batch=batch, seed=3)
    epochs = 2 + 3 * retain // len(plan)
    partners = [pair[1] for epoch in range(epochs) for pair in visits(plan, epoch)]
    for start in range(0, len(partners), retain):
        assert max(Counter(partners[start : start + retain]).values()) == 1
    assert set(partners) == set(range(retain))


def test_a_pair_depends_on_seed_epoch_and_index_alone() -> None:
    plan = PairPlan(8, 13, effective_batch=4, seed=0)
    expected = [visits(plan, epoch) for epoch in range(4)]
    backwards = PairPlan(8, 13, effective_batch=4, seed=0)
    for epoch in reversed(range(4)):
        for index in reversed(range(8)):
            torch.manual_seed(index)
            assert tuple(backwards[epoch * 8 + index]) == expected[epoch][index]
    assert expected[0] != expected[1]
    assert visits(PairPlan(8, 13, effective_batch=4, seed=1), 0) != expected[0]
    assert visits(PairPlan(8, 13, effective_batch=8, seed=0), 0) == expected[0]


def test_forget_and_retained_rows_are_shuffled_apart() -> None:
    pairs = visits(PairPlan(50, 50, effective_batch=50, seed=0), 0)
    assert sum(forget == retain for forget, retain in pairs) < 10


def test_partners_of_a_row_change_from_epoch_to_epoch() -> None:
    plan = PairPlan(8, 8, effective_batch=8, seed=0)
    assert dict(visits(plan, 0)) != dict(visits(plan, 1))


def test_the_sampler_yields_the_epoch_that_it_was_told() -> None:
    sampler = EpochSampler(PairPlan(8, 13, effective_batch=8, seed=0))
    assert list(sampler) == list(range(8))
    sampler.set_epoch(3)
    assert list(sampler) == list(range(24, 32))
    assert len(sampler) == 8


@pytest.mark.parametrize(("size", "accumulation", "workers"), [(8, 1, 0), (2, 4, 0), (1, 8, 0), (4, 2, 2)])
def test_the_trainer_s_loader_follows_the_plan_however_the_batch_is_cut(
    tmp_path: Path, size: int, accumulation: int, workers: int
) -> None:
    made = trainer(
        tmp_path,
        tiny_models.llama(),
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        dataloader_num_workers=workers,
        seed=5,
    )
    plan = PairPlan(len(FORGET), len(RETAIN), effective_batch=8, seed=5)
    batches = list(made.get_train_dataloader())
    assert len(batches) == len(plan) // size == accumulation
    for number, batch in enumerate(batches):
        pairs = [plan[number * size + i] for i in range(size)]
        for role, rows in (("forget", [FORGET[p.forget] for p in pairs]), ("retain", [RETAIN[p.retain] for p in pairs])):
            for key, expected in vars(pad_tokens(rows, pad_id=0)).items():
                assert torch.equal(batch[role][key], expected), (role, key)
