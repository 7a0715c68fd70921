"""Neighbours by hidden states: a case by hand."""

from __future__ import annotations

import pytest
import torch

from d2unlearn.training.neighbours import nearest, neighbour_count


def test_near_is_the_direction_of_any_forget_row_once_what_all_share_is_gone() -> None:
    """Retained means, less their centre (10, 10): east, north, west, south. Forget rows: one far east, one slightly north."""
    retain = [torch.tensor([[12.0, 10.0], [14.0, 10.0]]), torch.tensor([[10.0, 13.0]])]
    retain += [torch.tensor([[7.0, 10.0]]), torch.tensor([[10.0, 7.0]])]
    forget = [torch.tensor([[40.0, 10.0]]), torch.tensor([[10.0, 10.0], [10.4, 10.8]])]
    assert nearest(forget, retain, 4)[:2] == [0, 1]
    assert nearest(forget[:1], retain, 1) == [0]
    assert nearest(forget[1:], retain, 2) == [1, 0]
    assert nearest([], retain, 2) == []


@pytest.mark.parametrize(("rows", "count"), [(0, 0), (13, 13), (20, 20), (50, 20), (140, 35), (141, 36)])
def test_a_quarter_is_near_and_twenty_at_least(rows: int, count: int) -> None:
    assert neighbour_count(rows) == count
