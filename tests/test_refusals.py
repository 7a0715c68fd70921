"""Which refusal a prompt gets: recorded draws, which gates that were calibrated before must keep."""

from __future__ import annotations

import torch

from d2unlearn.refusals import GATE_REFUSALS, REFUSAL_BEGINNINGS, TAUGHT_REFUSALS, content_seed, refusal_index


def test_a_draw_depends_on_seed_and_content_alone() -> None:
    assert content_seed(0, [5, 6, 7]) == content_seed(0, tuple(torch.tensor([5, 6, 7]))) == 33092946845167
    assert [refusal_index(seed, [5, 6, 7], 4) for seed in (0, 3)] == [3, 0]
    assert refusal_index(3, "ab", 24) == 4


def test_no_refusal_stands_twice() -> None:
    for texts in (GATE_REFUSALS, TAUGHT_REFUSALS, REFUSAL_BEGINNINGS):
        assert len(set(texts)) == len(texts)
    assert all(text == text.lower() for text in REFUSAL_BEGINNINGS)
