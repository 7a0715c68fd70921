"""The page of an analysis: every number of the file is on it and no other, who is clearly better, curves by hand, odd files."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from d2unlearn.analysis import page_panels
from d2unlearn.analysis.page import build_page, drawn_detectors, hardest, headline, key_numbers, sentences, write_page
from d2unlearn.analysis.page_figures import DrawnSet, distributions, roc_panel
from d2unlearn.analysis.page_tables import detector_table, difference_chip, missed_share, size_text
from d2unlearn.analysis.records import Analysis, Estimate, Refusals, SetSummary, read_analysis, write_analysis
from d2unlearn.analysis.roc import BootstrapWeights, weighted_roc
from d2unlearn.analysis.significance import Rival, pair_of, refusals_of, rivals, significance, trial_of, wordings
from d2unlearn.report.notation import fixed, percent
from report.test_page import Page

from .made_up_analysis import DETECTORS, QUESTION, REFERENCE, SETS, made_up

TITLES = [
    "Every index",
    "Distributions",
    "Caught against refused wrongly",
    "How deep the removal goes",
    "Along the tokens of one answer",
    "How many calibration questions",
    "Under disturbances",
    "What each costs a request",
    "How it was done",
]


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return made_up()


@pytest.fixture(scope="module")
def page(analysis: Analysis) -> str:
    return build_page(analysis)


def numbers(text: str) -> list[str]:
    return re.findall(r"[−+]?\d[\d,]*\.?\d*%?", text)


def test_the_parts_stand_in_their_order_and_nothing_is_loaded(page: str, analysis: Analysis) -> None:
    read = Page(page)
    assert read.open == []
    assert read.text("h1") == [headline(analysis)]
    assert [title for title in read.text("h2") if title not in [tile.title for tile in key_numbers(analysis)]] == TITLES
    assert not re.search(r"https?:|//[a-z]|@import|javascript:|<script|<link|<img", page)
    policy = next(m["content"] for m in read.of("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))


def test_ids_are_unique_and_every_reference_has_its_target(page: str) -> None:
    ids = [a["id"] for _, a in Page(page).elements if "id" in a]
    assert len(ids) == len(set(ids))
    used = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)|aria-labelledby="([^"]+)"', page)
    assert {next(filter(None, groups)) for groups in used} <= set(ids)


def test_every_statistic_of_every_index_is_on_the_page_with_its_interval(page: str, analysis: Analysis) -> None:
    read = Page(page)
    chips, intervals = read.text("span"), read.text("span")
    for separation in pair_of(trial_of(analysis), "forget", "retain").values():
        for name, estimate in separation.statistics.items():
            write = percent if name == "fpr_at_95_tpr" else fixed
            assert write(estimate.value) in chips
            assert f"{write(estimate.low)} to {write(estimate.high)}" in intervals
    for trial in analysis.models:
        for separation in trial.separations:
            assert fixed(separation.statistics["auroc"].value) in chips
        for refusal in trial.refusals:
            for tried in SETS:
                share = refusal.refused[tried.name]
                assert percent(missed_share(share).value if tried.kind == "forget" else share.value) in chips


def test_no_cell_holds_a_number_that_is_not_in_the_file(analysis: Analysis) -> None:
    """Of the first table, cell by cell and in its place."""
    table = detector_table(analysis, trial_of(analysis), "forget_paraphrased", "retain_paraphrased", 0.05)
    lines = [line for group in table.groups for line in group.lines]
    found = pair_of(trial_of(analysis), "forget_paraphrased", "retain_paraphrased")
    refused = refusals_of(trial_of(analysis), 0.05)
    assert len(lines) == len(DETECTORS)
    for line, index in zip(lines, DETECTORS, strict=True):
        separation, share = found[index.name], refused[index.name].refused
        texts = [chip.text for cell in line.cells for chip in cell]
        s = {name: estimate.value for name, estimate in separation.statistics.items()}
        sign = "+" if separation.ahead.value > 0 else ""
        assert texts == [
            fixed(s["auroc"]),
            f"{sign}{fixed(separation.ahead.value, 4)}",
            percent(1 - share["forget_paraphrased"].value),
            percent(share["retain_paraphrased"].value),
            *(fixed(s["aupr"]), percent(s["fpr_at_95_tpr"]), fixed(s["overlap"]), fixed(s["ks_distance"])),
        ]
    assert [line.own for line in lines] == [index.name == REFERENCE for index in DETECTORS]
    assert [head[1] for head in table.heads] == ["↑", "", "↓", "↓", "↑", "↓", "↓", "↑"]


def test_the_head_counts_who_is_clearly_ahead_in_the_hardest_wording(analysis: Analysis) -> None:
    trial = trial_of(analysis)
    areas = {pair: pair_of(trial, *pair)[REFERENCE].statistics["auroc"].value for pair in wordings(SETS)}
    assert areas[hardest(analysis)] == min(areas.values())
    stands = [significance(separation.ahead) for separation in pair_of(trial, *hardest(analysis)).values()]
    assert numbers(headline(analysis)) == ["3", str(stands.count("better")), str(stands.count("worse"))]
    better = [rival for rival in rivals(trial, SETS, 0.01, "raised") if rival.clearly_better]
    named = ", ".join(f"“{index.label}”" for index in DETECTORS if index.name in {rival.detector for rival in better})
    assert sentences(analysis)[0].endswith(f"raised into the gap to forget: {named or 'none'}.")
    told, lost, wrong, cost = key_numbers(analysis)
    assert told.value == fixed(areas["forget", "retain"])
    refused = refusals_of(trial, 0.01)[REFERENCE].refused
    assert (lost.value, wrong.value) == (percent(1 - refused["forget"].value), percent(refused["retain"].value))
    assert f"world facts {percent(refused['world_facts'].value)}" in wrong.detail
    assert (cost.value, cost.detail) == ("0.8%", "of the time to generate the answer: 200 of 30,250 µs")


def test_significance_is_said_by_the_interval_alone() -> None:
    assert significance(Estimate(0.2, 0.1, 0.3)) == "better"
    assert significance(Estimate(-0.2, -0.3, -0.1)) == "worse"
    assert significance(Estimate(0.2, 0.0, 0.4)) == ""
    assert significance(Estimate(math.nan, math.nan, math.nan)) == ""
    assert difference_chip(Estimate(0.2, 0.1, 0.3)).tone == "better"
    assert difference_chip(Estimate(-0.00001, -0.0001, 0.0)).text == "0.0000"


def test_better_is_to_refuse_more_of_what_is_forgotten_and_less_of_what_is_kept() -> None:
    sets = [SetSummary("forget", "forget", 4, 0), SetSummary("retain", "retain", 4, 0)]
    up, down, none = Estimate(0.1, 0.05, 0.2), Estimate(-0.1, -0.2, -0.05), Estimate(0.0, -0.1, 0.1)

    cases = {"a": (up, none), "b": (none, down), "c": (up, up), "d": (down, down), "e": (none, none), "f": (none, up)}
    decided = [Refusals(name, 0.01, 1.0, {}, {"forget": f, "retain": r}) for name, (f, r) in cases.items()]
    decided.append(Refusals("a", 0.01, 2.0, {}, {"forget": up, "retain": up}, "raised"))
    trial = replace(trial_of(made_up()), refusals=tuple(decided))
    found = rivals(trial, sets, 0.01)
    assert found[:3] == (Rival("a", ("forget",), ()), Rival("b", ("retain",), ()), Rival("c", ("forget",), ("retain",)))
    assert [rival.clearly_better for rival in found] == [True, True, False, False, False, False]
    assert rivals(trial, sets, 0.01, "raised") == (Rival("a", ("forget",), ("retain",)),)
    assert rivals(trial, sets, 0.05) == ()


def test_each_forget_set_stands_beside_the_retained_set_of_its_wording(analysis: Analysis) -> None:
    assert wordings(SETS) == (("forget", "retain"), ("forget_paraphrased", "retain_paraphrased"))
    assert wordings([SetSummary("people", "forget", 1, 0), SetSummary("rest", "retain", 1, 0)]) == (("people", "rest"),)
    assert page_panels.general_sets(analysis) == ["world_facts"]


def test_a_curve_of_a_set_without_a_score_catches_nothing() -> None:
    retain, forget = np.array([math.nan]), np.array([1.0, 2.0])
    curve = weighted_roc(retain, forget, BootstrapWeights.draw("a", 0, 0), BootstrapWeights.draw("ab", 0, 0))
    assert np.isnan(curve.fpr).all()
    assert curve.tpr.tolist() == [[1, 0.5, 0]]
    assert roc_panel("x", [curve], 1, "k").description == "x. Caught with no false refusal: 0%."


def test_a_distribution_says_what_it_holds_and_needs_a_number() -> None:
    panel = distributions(
        "x", [DrawnSet("forget", "filled", np.array([1.0, 3.0, math.inf])), DrawnSet("retain", "dotted", np.zeros(2))], 2.0, "k"
    )
    assert panel is not None
    assert panel.description == "x. forget, filled: n = 2, median 2; retain, dotted: n = 2, median 0."
    assert distributions("x", [DrawnSet("forget", "filled", np.array([math.nan]))], 2.0, "k") is None


def test_thresholds_are_drawn_in_the_index_s_own_sign(analysis: Analysis) -> None:
    trial = trial_of(analysis)
    for name, sign in (("energy/prompt", 1), ("max-probability/highest-2", -1)):
        assert page_panels.threshold_of(analysis, trial, name) == sign * refusals_of(trial, 0.01)[name].threshold


def test_pictures_show_the_reference_first_and_say_in_words_what_they_show(page: str, analysis: Analysis) -> None:
    assert [index.name for index in drawn_detectors(analysis)] == [
        REFERENCE, "energy/prompt", "max-probability/highest-2", "neighbours/answer",
    ]  # fmt: skip
    figures = Page(page).of("figure")
    assert len(figures) == 3 + 3 + 4 + 5 + 10 + 2
    labels = [str(figure["aria-label"]) for figure in figures]
    assert len(set(labels)) == len(labels)
    assert "told apart over the first 8 tokens. After the last layer original: 0.838; model: 0.838; oracle: 0.838." in labels
    assert "refused wrongly. The first index, by number of requests: 20: 2.0%; 100: 2.0%." in labels


def test_questions_and_answers_are_escaped_and_tinted_from_low_to_high(page: str) -> None:
    assert QUESTION not in page
    assert Page(page).text("h3")[0] == QUESTION
    tokens = re.findall(r'<i style="--high:([\d.]+)">([^<]*)</i>', page)
    assert tokens[:3] == [("0.0", "It"), ("0.67", " was"), ("1.0", " &lt;i&gt;")]


def test_what_was_not_read_is_said_and_what_is_missing_is_left_out(analysis: Analysis) -> None:
    alone = replace(trial_of(analysis), layers=(), no_layers="the layers could not be told apart")
    asked = tuple(replace(question, told=question.told[1:2]) for question in analysis.asked)
    page = build_page(replace(analysis, models=(alone,), asked=asked, curves=(), disturbed=(), gate_score=None))
    read = Page(page)
    assert read.open == []
    assert "Not read: the layers could not be told apart." in read.text("p")
    assert "Too few calibration questions to try several numbers of them." in read.text("p")
    assert "the others are compared with it" in read.text("span")
    assert "never knew" not in page
    assert len(read.of("figure")) == 1 + 3 + 2 + 10


def test_what_could_not_be_scored_is_a_dash(analysis: Analysis) -> None:
    none = Estimate(math.nan, math.nan, math.nan)
    trial = trial_of(analysis)
    unscored = tuple(
        replace(separation, statistics=dict.fromkeys(separation.statistics, none), ahead=none)
        if separation.index == "energy/prompt"
        else separation
        for separation in trial.separations
    )
    models = tuple(replace(model, separations=unscored) if model is trial else model for model in analysis.models)
    text = re.sub(r"<style>.*?</style>", "", build_page(replace(analysis, models=models)), flags=re.DOTALL)
    assert "–" in Page(text).text("span")
    assert not re.search(r"\bnan\b", text, re.IGNORECASE)


def test_the_page_is_redrawn_from_the_file_and_is_the_same_page(page: str, analysis: Analysis, tmp_path: Path) -> None:
    write_analysis(tmp_path / "analysis.json", analysis)
    assert read_analysis(tmp_path / "analysis.json") == analysis
    written = write_page(tmp_path / "analysis.json")
    assert written == tmp_path / "analysis.html"
    assert written.read_text(encoding="utf-8") == page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["analysis.html", "analysis.json"]


def test_sizes_are_written_short() -> None:
    assert [size_text(n) for n in (0, 4, 16392, 409600, 2_500_000)] == ["–", "4 B", "16.4 kB", "410 kB", "2.5 MB"]
