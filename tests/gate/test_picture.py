"""The scores as lines of text."""

from __future__ import annotations

import math

from d2unlearn.gate.picture import score_picture


def test_the_picture_by_hand() -> None:
    """Ten steps from 0 to 10: two legitimate scores in the first, one in the second; forgotten ones at the end."""
    assert score_picture([0.0, 0.5, 1.5, math.inf], [9.5, 10.0], 5.5, width=10) == [
        "legitimate |█▄        |",
        "forgotten  |         █|",
        "                 ^ threshold 5.50; from 0.00 to 10.00",
    ]


def test_scores_that_are_all_alike_and_none_at_all_have_a_picture() -> None:
    assert score_picture([1.0, 1.0], [], 1.0, width=4)[0] == "legitimate |█   |"
    assert score_picture([], [], 1.0, width=4)[1] == "forgotten  |    |"
