"""The path of a measured recipe on the page: what it says, what is drawn of it, and nothing without one."""

from __future__ import annotations

from typing import Any

from d2unlearn.report.html import build
from d2unlearn.report.path import path_drawing
from d2unlearn.schema import Evaluation, GateSummary

RECIPE: dict[str, Any] = {
    "verdict": "target missed: keep <here>",
    "forget_below": 0.19,
    "keep_at_least": 0.99,
    "before": {"forget": 0.996},
    "kept_step": 20,
    "path": [
        {"step": 10, "forget": 0.5, "retain": 0.99, "near": None},
        {"step": 20, "forget": 0.1, "retain": 0.98, "near": None},
        {"step": 30, "forget": None, "retain": None, "near": None},
    ],
}


def test_the_drawing_says_every_point_and_both_targets() -> None:
    drawn = path_drawing(RECIPE)
    assert drawn is not None
    assert drawn.description == (
        "step 0: forget 0.996; step 10: forget 0.5; step 20: forget 0.1; step 30: forget no number. "
        "Targets: forget at most 0.19, keep at least 0.99."
    )
    assert "var(--forget)" in drawn.svg
    assert "var(--retain)" in drawn.svg
    assert path_drawing({**RECIPE, "path": []}) is None
    assert path_drawing(RECIPE) == drawn


def test_the_page_draws_it_where_there_is_one(before: Evaluation, after: Evaluation, gate: GateSummary) -> None:
    page = build(before, after, gate, {}, recipe=RECIPE)
    assert "The way to its targets" in page
    assert "target missed: keep &lt;here&gt;." in page
    assert "The way to its targets" not in build(before, after, gate, {})
