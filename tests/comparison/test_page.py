"""The comparison's index and its figure: where labels go, what is linked, what is escaped, that nothing is loaded."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from comparison.made_up import run_result, tuning_result
from d2unlearn.comparison.outcomes import MetricOutcome
from d2unlearn.comparison.page import index_page, write_pages
from d2unlearn.comparison.table import SplitTable, split_table
from d2unlearn.comparison.tradeoff import OWN_MARKS, Point, label_heights, point_marks, points_of, tradeoff
from d2unlearn.comparison.win_tie_loss import LARGEST, SMALLEST, area_of, columns_of, win_tie_loss
from d2unlearn.serialization import write_evaluation
from report.synthetic import synthetic
from report.test_page import Page

RUNS = [
    run_result("original", 0, [1.0] * 4, [1.0] * 4, returned=0.99),
    run_result("oracle", 0, [0.1, 0.0, 0.1, 0.0], [1.0] * 4, returned=0.002),
    *(run_result("eua", seed, [0.02] * 4, [0.9, 1.0, 0.9, 1.0 - 0.1 * seed], returned=0.4 + 0.1 * seed) for seed in (0, 1)),
    run_result("npo", 0, [0.3, 0.4, 0.5, 0.6], [0.95] * 4, returned=0.2),
]


@pytest.fixture(scope="module")
def table() -> SplitTable:
    return split_table("ten", RUNS, [tuning_result("eua", 0.5, 0.9)], {"prompt_guard": "does not <b>read</b>"}, ["eua", "npo"])


def test_labels_keep_their_order_and_their_distance_and_stay_near() -> None:
    assert label_heights([0.1, 0.9, 0.5], 0.2) == pytest.approx([0.1, 0.9, 0.5])
    assert label_heights([0.5, 0.5, 0.5], 0.2) == pytest.approx([0.3, 0.5, 0.7])
    assert label_heights([0.02, 0.0], 0.1) == pytest.approx([0.1, 0.0])
    assert label_heights([0.95, 0.97, 0.99], 0.1) == pytest.approx([0.8, 0.9, 1.0])
    rng = np.random.default_rng(0)
    for _ in range(50):
        wanted = rng.uniform(0.3, 0.7, size=12)
        placed = np.array(label_heights(wanted.tolist(), 0.05))
        assert (np.argsort(placed) == np.argsort(wanted)).all()
        assert np.diff(np.sort(placed)).min() >= 0.05 - 1e-9


def test_points_are_means_with_half_intervals_and_only_of_those_that_have_both_numbers(table: SplitTable) -> None:
    points = {point.name: point for point in points_of(table.rows, "forget.extraction_strength")}
    assert set(points) == {"original", "oracle", "eua", "npo"}
    assert points["npo"] == Point("npo", pytest.approx(0.45), pytest.approx(0.95), 0.0, 0.0)
    assert points["eua"].y == pytest.approx(0.9375)
    assert points["eua"].dy == pytest.approx(12.7062 * np.std([0.95, 0.925], ddof=1) / np.sqrt(2), rel=1e-4)
    assert (points["eua"].x, points["eua"].dx) == (pytest.approx(0.02), pytest.approx(0.0))


def test_the_figure_names_everybody_marks_the_retain_model_and_says_what_it_shows(table: SplitTable) -> None:
    drawn = tradeoff(table)
    assert drawn is not None
    for name in ("original", "oracle", "eua", "npo"):
        assert drawn.svg.count(f">{name}</text>") == 2  # at rest, and after relearning
    assert "var(--retain)" in drawn.svg
    assert "var(--forget)" in drawn.svg
    assert "oracle: left 0.050, kept 1.000" in drawn.description
    assert tradeoff(table) == drawn
    assert tradeoff(replace(table, rows=())) is None
    only_at_rest = [replace(run, comebacks=()) for run in RUNS]
    alone = tradeoff(split_table("ten", only_at_rest, [], {}))
    assert alone is not None
    assert alone.svg.count(">npo</text>") == 1


def test_everybody_has_a_row_and_a_mark_in_each_metric(table: SplitTable) -> None:
    drawn = win_tie_loss(table)
    assert drawn is not None
    assert drawn.svg.count(">npo</text>") == 1
    assert not re.search(r">(original|oracle)</text>", drawn.svg)
    assert drawn.description == "eua against everybody else on ten: wins 0, ties 2, loses 0."
    assert win_tie_loss(table) == drawn
    assert win_tie_loss(replace(table, outcomes=())) is None


def test_a_win_a_tie_and_a_loss_look_different_and_differences_have_a_size(table: SplitTable) -> None:
    def drawing(result: str, difference: float) -> str:
        one = replace(table.outcomes[0], result=result, difference=difference)  # type: ignore[arg-type]
        found = win_tie_loss(replace(table, outcomes=(one,)))
        assert found is not None
        return found.svg

    assert len({drawing(result, 0.5) for result in ("win", "tie", "loss")}) == 3
    assert area_of(0.0) == SMALLEST < area_of(-0.2) < area_of(0.5) < area_of(1.0) == area_of(3.0) == LARGEST


def test_metrics_of_one_group_stand_side_by_side() -> None:
    metrics = ("retain.extraction_strength", "forget.guarded_refusal_rate", "forget.extraction_strength", "comeback.first.20")
    groups = [metric.replace("comeback.first.20", "comeback") for metric in metrics]
    outcomes = [MetricOutcome("npo", *both, 0.1, 1.0, 4, "tie") for both in zip(metrics, groups, strict=True)]
    assert columns_of(outcomes) == [metrics[2], metrics[0], metrics[1], metrics[3]]


def test_the_index_links_what_is_at_hand_and_escapes_the_rest(table: SplitTable) -> None:
    text = index_page([table], {"ten/eua/seed-0": "ten/eua/seed-0.html", "ten/eua/seed-1": "ten/eua/seed-1.html"})
    page = Page(text)
    assert page.open == []
    assert [a["href"] for a in page.of("a")] == ["ten/eua/seed-0.html", "ten/eua/seed-1.html"] * 2
    assert "<b>read</b>" not in text
    assert not re.search(r"https?:|<script|javascript:|@import", text)
    policy = next(m["content"] for m in page.of("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    assert page.text("h2") == ["ten"]
    assert "<li>retain: extraction strength: wins 0, ties 1, losses 0</li>" in text
    assert text.count("Holm&#39;s adjustment") == 1
    assert "0.938 ± 0.159" in page.text("td")


def test_pages_are_written_for_every_answer_at_hand_beside_the_original_s(table: SplitTable, tmp_path: Path) -> None:
    before, after = synthetic(after=False), synthetic(after=True)
    for key, result in (("ten/original/seed-0", before), ("ten/eua/seed-0", after), ("nine/eua/seed-0", after)):
        write_evaluation(tmp_path / "answers" / key / "evaluation.json", result)
    index = write_pages([table], tmp_path / "answers", tmp_path / "pages")
    written = sorted(str(path.relative_to(tmp_path / "pages")) for path in (tmp_path / "pages").rglob("*.html"))
    assert written == ["index.html", "ten/eua/seed-0.html", "ten/original/seed-0.html"]
    assert index == (tmp_path / "pages" / "index.html").resolve()
    assert "<dt>contestant</dt><dd>eua</dd>" in (index.parent / "ten" / "eua" / "seed-0.html").read_text()


def test_no_two_entries_look_alike() -> None:
    names = ["original", "oracle", "eua", *(f"method{number}" for number in range(25))]
    marks = point_marks(names)
    assert set(marks) == set(names)
    assert len({mark[:2] for mark in marks.values()}) == len(names)
    assert marks["oracle"] == OWN_MARKS["oracle"]
