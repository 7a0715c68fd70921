"""The page of an audit: claims, attacks by the shape of their settings, escaped texts, numbers that stand in the record."""

from __future__ import annotations

import html
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from d2unlearn.audit.page import attack_sections, audit_page, claim_card, claims_headline, write_audit_page
from d2unlearn.audit.page_pictures import DrawnSetting, pictures
from d2unlearn.audit.records import Audit, SettingResult
from d2unlearn.audit.verdict import ClaimMargins
from d2unlearn.report.notation import fixed
from d2unlearn.runtime import write_json
from d2unlearn.schema import MetricResult
from d2unlearn.serialization import record_to_json
from report.test_page import Page

from .made_up_audit import FAMILIES, SPITEFUL, attack, made_up_audit, relearning, restoring, scores, setting, wordings


@pytest.fixture(scope="module")
def audit() -> Audit:
    return made_up_audit()


@pytest.fixture(scope="module")
def page(audit: Audit) -> str:
    return audit_page(audit)


def test_claims_come_first_then_the_attacks_and_nothing_is_loaded(page: str, audit: Audit) -> None:
    read = Page(page)
    assert read.open == []
    assert read.text("h1") == ["Of 5 claims, 1 holds, 2 do not, 2 are not shown."]
    attacks = ["Storage", "Wordings", "Relearning", "Membership"]
    assert read.text("h2") == [
        *(claim.claim for claim in audit.claims),
        *attacks,
        "Not made",
        "What was told, in full",
        "How it was done",
    ]
    assert not re.search(r"https?:|//[a-z]|@import|javascript:|<script|<link|<img", page)
    policy = next(m["content"] for m in read.of("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_each_claim_s_sentence_stands_once_with_its_verdict_in_words(page: str, audit: Audit) -> None:
    for claim in audit.claims:
        assert html.unescape(page).count(claim.why) == 1
    said = re.findall(r'<p class="verdict"><span class="sign" aria-hidden="true">(.)</span>([^<]+)</p>', page)
    assert said == [("✓", "holds"), ("✕", "does not hold"), ("✕", "does not hold"), ("?", "not shown"), ("?", "not shown")]


def test_ids_are_unique_and_every_reference_has_its_target(page: str) -> None:
    ids = [a["id"] for _, a in Page(page).elements if "id" in a]
    assert len(ids) == len(set(ids))
    used = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)|aria-labelledby="([^"]+)"', page)
    assert {next(filter(None, groups)) for groups in used} <= set(ids)


def test_what_comes_from_outside_is_escaped(page: str, audit: Audit) -> None:
    for text in (SPITEFUL, audit.label, audit.examples[0].said, audit.left_out["probes"]):
        assert text not in page
        assert str(html.escape(text)).replace("&#x27;", "&#39;").replace("&quot;", "&#34;") in page


def test_every_number_of_every_setting_is_in_a_table(page: str, audit: Audit) -> None:
    cells = Page(page).text("td")
    for result in audit.attacks:
        for one in result.settings:
            for metric in one.values.values():
                assert fixed(metric.value) in cells


def test_the_numbers_in_rows_stand_in_the_record(audit: Audit) -> None:
    known = {fixed(metric.value) for result in audit.attacks for one in result.settings for metric in one.values.values()}
    drawn = [each for section in attack_sections(audit) for each in (*section.open, *section.folded)]
    shown = [number for each in drawn for row in each.picture.rows for number in (row.value, *dict(row.others).values())]
    assert set(shown) <= known
    assert len(drawn) == 5


def test_without_texts_the_page_shows_none_and_says_so(audit: Audit) -> None:
    redacted = audit_page(replace(audit, examples=(), redacted=True))
    assert "Texts were left out of this audit (--redact)." in redacted
    for example in audit.examples:
        for text in (example.question, example.answer, example.said):
            assert html.escape(text) not in redacted
    assert "No forgotten row was told in any attack." in audit_page(replace(audit, examples=()))


def test_an_audit_of_nothing_still_says_so(audit: Audit) -> None:
    claims = tuple(replace(claim, verdict="not shown", attack="", setting="") for claim in audit.claims)
    empty = replace(
        audit, claims=claims, attacks=(), examples=(), control="none", left_out={"relearning": "artifact: too few rows"}
    )
    read = Page(audit_page(empty))
    assert read.open == []
    assert read.text("h1") == ["Of 5 claims, none holds, 5 are not shown."]
    assert "artifact: too few rows" in read.text("dd")
    assert claims_headline(()) == "No claim was judged."
    assert claims_headline([replace(claim, verdict="holds") for claim in claims]) == "Every claim holds."


def test_a_claim_s_number_is_the_difference_that_decides_beside_its_margin(audit: Audit) -> None:
    card = claim_card(audit.claims[1], audit)
    assert (card.value, card.detail) == ("+0.270", "above the model that never knew; 0.01 is allowed")
    assert card.attack == ("Wordings", "attack-wordings")
    assert claim_card(audit.claims[4], audit).value == "–"


def test_settings_along_a_number_are_curves_and_the_worst_line_is_bold() -> None:
    (picture,) = pictures([relearning()], ClaimMargins())
    assert [panel.title for panel in picture.panels] == ["whole groups", "one row"]
    assert picture.rows == ()
    for panel in picture.panels:
        assert panel.along == "steps"
        assert [[x for x, _ in line.points] for line in panel.lines] == [[0, 1, 5, 20, 80]] * 3
        (bold,) = [line for line in panel.lines if line.bold]
        assert bold.points[-1][1].setting["learning rate"] == 0.001
    start = picture.panels[0].lines[0].points[0][1]
    assert dict(start.setting) == {"steps": 0}


def test_where_all_lines_begin_counts_among_their_points() -> None:
    settings = [setting({"steps": 0}, 0.1, 0.1)]
    settings += [setting({"relearned": "one row", "rate": 0.1, "steps": steps}, steps / 100, 0.1) for steps in (5, 20)]
    (picture,) = pictures([attack("relearning", tuple(settings), claim="comes_back")], ClaimMargins())
    assert [[x for x, _ in line.points] for panel in picture.panels for line in panel.lines] == [[0, 5, 20]]


def test_what_judges_nothing_is_drawn_apart() -> None:
    counted = replace(restoring(), deciding=None)
    shown = attack("storage", (setting({"restored": "everything"}, 0.97, 0.06),))
    first, second = pictures([shown, counted], ClaimMargins())
    assert [row.label for row in first.rows] == ["layer 1", "layer 2", "all attention", "all MLPs"]
    assert [(row.label, row.limit) for row in second.rows] == [("everything", None)]
    assert (first.judged, second.judged) == (True, False)


def test_raw_and_guarded_share_a_row_a_family_and_the_limit_is_the_control_s_plus_the_margin() -> None:
    told, refused = pictures([wordings(guarded=False), wordings(guarded=True)], ClaimMargins())
    assert (told.judged, refused.judged) == (True, False)
    assert told.series == ("artifact", "guarded", "oracle", "original")
    assert [row.label for row in told.rows][:2] == ["any", "backwards"]
    assert len(told.rows) == len(FAMILIES)
    first = told.rows[0]
    assert {mark.series: mark.at for mark in first.marks} == {"original": 90, "oracle": 1, "guarded": 2.8, "artifact": 28}
    assert (first.limit, first.value, first.decides) == (2.0, "0.280", True)
    assert first.others == (("gate", "0.028"), ("control", "0.010"))


def test_a_family_is_shown_by_its_worst_wording() -> None:
    settings = tuple(
        setting({"wording": f"typos/{n}", "family": "typos"}, value, 0.0, measure="told")
        for n, value in enumerate((0.1, 0.3, 0.2))
    )
    (picture,) = pictures([attack("wordings", settings, claim="other_words")], ClaimMargins())
    assert [(row.label, row.note, row.value) for row in picture.rows] == [("typos", "typos/1", "0.300")]
    assert picture.left == 2


def test_numbers_that_are_no_shares_have_a_scale_of_their_own_in_every_row() -> None:
    (picture,) = pictures([scores()], ClaimMargins())
    middle = 100 * 1.08 / 2.16
    for row in picture.rows:
        assert [(mark.at, mark.low, mark.high) for mark in row.marks] == [(middle, round(8 / 2.16, 2), round(208 / 2.16, 2))]
    assert [row.limit for row in picture.rows] == [None, None, None]
    assert (picture.judged, picture.ticks) == (False, ())


def test_many_rows_are_cut_to_the_worst_and_counted() -> None:
    settings = tuple(setting({"restored": f"part {n}"}, n / 100, 0.0) for n in range(30))
    (picture,) = pictures([attack("storage", settings, claim="gone", deciding=3)], ClaimMargins())
    assert [row.label for row in picture.rows][:3] == ["part 3", "part 29", "part 28"]
    assert (len(picture.rows), picture.left) == (14, 16)


def test_settings_in_which_no_row_was_asked_are_in_the_table_alone() -> None:
    unscored = MetricResult("told", math.nan, math.nan, math.nan, 0, 10, "lower")
    none = SettingResult(
        {"wording": "x", "family": "x"}, "told", "forget", {"artifact": unscored}, math.nan, math.nan, math.nan
    )
    told = setting({"wording": "y", "family": "y"}, 0.1, 0.0, measure="told")
    assert pictures([attack("paraphrases", (none,), claim="other_words")], ClaimMargins()) == []
    (picture,) = pictures([attack("paraphrases", (none, told), claim="other_words")], ClaimMargins())
    assert ([row.label for row in picture.rows], picture.left) == (["y"], 1)


def test_a_setting_without_a_number_draws_no_mark() -> None:
    one = setting({"restored": "layer 1"}, 0.5, 0.1)
    unscored = replace(one.values["artifact"], value=float("nan"), low=float("nan"), high=float("nan"))
    (picture,) = pictures(
        [replace(restoring(), settings=(replace(one, values={**one.values, "artifact": unscored}),))], ClaimMargins()
    )
    assert [(mark.series) for mark in picture.rows[0].marks] == ["oracle"]
    assert picture.rows[0].value == "–"
    assert DrawnSetting({}, {"artifact": unscored}, 0.0, False).worst == float("-inf")


def test_the_page_is_written_beside_the_record_and_is_the_same_every_time(audit: Audit, page: str, tmp_path: Path) -> None:
    path = tmp_path / "audit.json"
    write_json(path, record_to_json(audit, "audit"))
    assert write_audit_page(path) == tmp_path / "audit.html"
    assert (tmp_path / "audit.html").read_text(encoding="utf-8") == page


def test_how_well_rows_are_told_apart_is_drawn_beside_chance() -> None:
    """The AUC stands on a scale of shares with chance at its place; the scores themselves are folded away."""
    given = scores()
    auc = MetricResult("auc", 0.12, 0.08, 0.2, 200, 0, "neither")
    told = replace(given, settings=tuple(replace(one, told_apart={"oracle": auc}) for one in given.settings))
    drawn = pictures([told], ClaimMargins())
    assert [(picture.measure, picture.chance, picture.shares) for picture in drawn] == [
        ("told_apart", 0.5, True),
        ("score", None, False),
    ]
    assert (drawn[0].scale, drawn[0].chance_at) == ((0.0, 0.5), 100.0)
    assert [(row.value, row.marks[0].series, row.marks[0].at) for row in drawn[0].rows] == [("0.120", "oracle", 24.0)] * 3
    section = attack_sections(replace(made_up_audit(), attacks=(told,)))[0]
    assert ([len(section.open), len(section.folded)], section.open[0].picture.measure) == ([1, 1], "told_apart")


def test_chance_is_drawn_where_guessing_gives_something_and_what_was_not_made_is_said() -> None:
    layers = tuple(
        setting({"layer": layer, "wrong answers": "its own"}, 0.5 + 0.1 * layer, 0.52, measure="picked") for layer in range(3)
    )
    probes = attack("probing", layers, claim="gone", deciding=2)
    audit = replace(made_up_audit(), attacks=(probes,), unmade={"probing": ("facts T: it needs a column <half>",)})
    panel = pictures([probes], ClaimMargins())[0].panels[0]
    assert panel.chance == 0.5
    page = audit_page(audit)
    assert "chance 0.5; artifact 0: 0.500, 1: 0.600, 2: 0.700" in page
    assert "<li>Facts T: it needs a column &lt;half&gt;.</li>" in page
    assert pictures([relearning()], ClaimMargins())[0].panels[0].chance is None
