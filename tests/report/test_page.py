"""The page itself: its numbers, its structure, what it must never do, and that it is the same every time."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from d2unlearn.report import build
from d2unlearn.report.html import compare_settings, gate_entries, plain, run_sections
from d2unlearn.schema import Evaluation, GateSummary, MetricResult
from d2unlearn.serialization import evaluation_from_json, evaluation_to_json

from .synthetic import REFUSAL, evaluated, evaluation, example, metric

VOID = {"meta", "br", "path", "use", "rect"}
LOADING = {"src", "srcset", "data", "action", "poster", "background"}


class Page(HTMLParser):
    """Reads a page: elements in order, text per element name, ids, and every start tag that was never closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and data.strip():
            self.texts.append((self.open[-1], " ".join(data.split())))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag]


@pytest.fixture(scope="module")
def page(before: Evaluation, after: Evaluation, gate: GateSummary, run: dict[str, object]) -> str:
    return build(before, after, gate, run)


def test_the_parts_stand_in_their_order(page: str) -> None:
    read = Page(page)
    assert read.open == []
    assert read.text("h1") == ["It worked: the knowledge is gone, requests for it are refused, the rest is kept."]
    titles = [t for t in read.text("h2") if t not in ("Forgotten", "Kept", "Rightly refused", "Wrongly refused")]
    assert titles == [
        "Energy of the questions",
        "What the gate sees",
        "Before and after",
        "Questions, side by side",
        "How it was done",
    ]


def test_every_metric_is_shown_with_its_interval(page: str, before: Evaluation, after: Evaluation) -> None:
    cells = Page(page).text("td")
    intervals = Page(page).text("span")
    for side in (before, after):
        for m in (m for s in side.sets for m in s.metrics if not m.name.endswith("refusal_rate")):
            assert f"{m.value:.3f}" in cells
            assert f"{m.low:.3f} to {m.high:.3f}" in intervals


def test_rates_are_shown_in_percent(page: str, after: Evaluation) -> None:
    rate = next(m for m in after.sets[4].metrics if m.name == "guarded_refusal_rate")
    assert f"{rate.value:.1%}" == "0.9%"
    assert "0.9%" in Page(page).text("td")
    assert '<b>0.9%</b> <span class="small">1 of 117</span>' in page


def test_it_loads_nothing_and_runs_nothing(page: str) -> None:
    read = Page(page)
    assert not re.search(r"https?:|//[a-z]|@import|javascript:", page)
    assert {name for name, _ in read.elements} & {"script", "link", "img", "iframe", "object", "embed"} == set()
    for _, attributes in read.elements:
        assert not LOADING & set(attributes)
        assert (attributes.get("href") or "#").startswith("#")
        assert not [name for name in attributes if name.startswith("on")]
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    policy = next(m["content"] for m in read.of("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_ids_are_unique_and_every_reference_has_its_target(page: str) -> None:
    ids = [a["id"] for _, a in Page(page).elements if "id" in a]
    assert len(ids) == len(set(ids))
    used = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)|aria-labelledby="([^"]+)"', page)
    assert {next(filter(None, groups)) for groups in used} <= set(ids)


def test_figures_and_tables_say_what_they_are(page: str) -> None:
    read = Page(page)
    labels = [f["aria-label"] for f in read.of("figure")]
    assert [label.split(":")[0] for label in labels if label] == ["Before", "After"]
    assert all(label and "forget: n = 800, median" in label for label in labels)
    tables = [a for a in read.of("table") if a.get("class") == "wide"]
    assert len(tables) == 6  # five sets and the separation
    assert len(read.of("caption")) == len(tables)  # that of the scores, and all but the folded separation's
    assert len(read.of("summary")) == 1
    arrows = [a["aria-label"] for a in read.of("span") if a.get("class") == "arrow"]
    assert set(arrows) == {"lower is better", "higher is better"}


def test_the_same_input_gives_the_same_page(
    page: str, before: Evaluation, after: Evaluation, gate: GateSummary, run: dict[str, object]
) -> None:
    assert build(before, after, gate, run) == page


def test_a_page_from_the_stored_json_is_the_same_page(
    page: str, before: Evaluation, after: Evaluation, gate: GateSummary, run: dict[str, object]
) -> None:
    stored = [evaluation_from_json(evaluation_to_json(e)) for e in (before, after)]
    assert build(stored[0], stored[1], gate, run) == page


def test_another_seed_shows_other_questions(
    page: str, before: Evaluation, after: Evaluation, gate: GateSummary, run: dict[str, object]
) -> None:
    assert build(before, after, gate, {**run, "seed": 43}) != page.replace("<dd>42</dd>", "<dd>43</dd>")


def test_everything_inserted_is_escaped(gate: GateSummary) -> None:
    evil = "<script>alert('x')</script>\"&<b>"
    shown = replace(
        example(evil, question=evil, refused=True, gate_score=1.0, scores={"rouge_l_recall": 0.1}),
        answer=evil, raw_answer=evil, guarded_answer=evil,
    )  # fmt: skip
    odd = MetricResult(evil, 0.5, 0.4, 0.6, 3, 0, "neither", evil)
    one = evaluation(evaluated(evil, "forget", odd, metric("extraction_strength", 0.9), examples=(shown,)))
    one = replace(one, model=evil, label=evil, settings={evil: evil}, separation=(odd,))
    bad = replace(gate, guarantee=evil, score_name=evil)
    page = build(one, one, bad, {evil: evil, "more": {evil: evil}, "data": [{evil: evil}]})
    assert "<script" not in page
    assert '<b>"' not in page
    assert page.count("&lt;script&gt;") > 20
    read = Page(page)
    assert read.of("script") == []
    assert evil in read.text("h3")


def test_refusals_are_marked_and_only_refusals(page: str, after: Evaluation) -> None:
    read = Page(page)
    assert len([s for s in read.text("span") if s == "Refused"]) == page.count('class="refused"')
    assert page.count('class="refused"') == page.count(REFUSAL.replace("'", "&#39;"))
    assert sorted(t for t in read.text("span") if t in ("worst leak", "passed the gate", "refused by mistake")) == [
        "passed the gate", "refused by mistake", "worst leak",
    ]  # fmt: skip


def test_without_gate_energies_or_sets_the_page_still_stands() -> None:
    page = build(evaluation(), evaluation(), None, {})
    assert Page(page).open == []
    for text in ("No energy was scored.", "No gate was calibrated", "No question was evaluated."):
        assert text in page
    assert "nan" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL).lower()


def test_what_was_not_scored_is_a_dash() -> None:
    one = evaluation(evaluated("f", "forget", metric("extraction_strength", math.nan), examples=(example(energy=math.nan),)))
    page = build(one, one, None, {"loss": math.nan})
    assert page.count('<td class="number after">–</td>') == 1
    assert "<dt>loss</dt><dd>–</dd>" in page


def test_names_that_are_not_ascii_or_look_like_mathematics_are_no_trouble() -> None:
    one = evaluation(evaluated("忘れる $x_1$", "forget", examples=(example(refused=True, gate_score=2.0),)))
    page = build(one, one, None, {})
    assert "忘れる $x 1$" in page


def test_drawing_it_imports_no_torch() -> None:
    code = "import sys, d2unlearn.report; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_run_becomes_sections(run: dict[str, object]) -> None:
    sections = run_sections(run)
    assert [s.title for s in sections] == ["run", "parameters", "seconds", "versions", "data"]
    assert sections[0].entries[1:4] == (
        ("learning rate", "0.001"),
        ("learning rate chosen", "auto, for 4,200,000 parameters"),
        ("seed", "42"),
    )
    assert sections[4].columns == ("role", "file", "rows", "sha256", "held out")
    assert sections[4].rows[0] == ("forget", "forget10.jsonl", "400", "9f2c…e1", "–")
    assert run_sections({}) == ()
    assert run_sections({"a": {"b": {"c": 1}}})[0].entries == (("b: c", "1"),)


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-5, "1e-05"), (-14.5, "−14.5"), (131.52, "131.52"), (3600, "3600"), (12345, "12,345"), (True, "yes"), (None, "–"),
     (math.nan, "–"), ([1, 0.5], "1, 0.5"), ("x", "x"), ({"a": [1]}, "a: 1"), ([], "")],
)  # fmt: skip
def test_plain_values(value: object, text: str) -> None:
    assert plain(value) == text


def test_settings_that_differ_are_marked() -> None:
    assert compare_settings({"a_b": 1, "c": 2}, {"a_b": 1, "c": 3, "d": 0}) == (
        ("a b", "1", "1", False),
        ("c", "2", "3", True),
        ("d", "–", "0", True),
    )


def test_the_gate_s_entries(gate: GateSummary) -> None:
    entries = dict(gate_entries(gate))
    assert entries["largest share of false refusals"] == "1% (with 90% confidence)"
    assert entries["misses measured"] == "0.2% (<0.1% to 1.4%, n = 400)"
    assert dict(gate_entries(replace(gate, confidence=None, miss_rate=None)))["misses measured"] == "–"
