"""A report that knows of an audit: its claims, the link, what they do to the headline, audits of something else."""

from __future__ import annotations

import html
from pathlib import Path

import pytest

from d2unlearn.errors import DataError
from d2unlearn.report import build
from d2unlearn.report.audited import AuditSummary, read_audit_summary
from d2unlearn.report.concerns import BeforeAfter, concerns
from d2unlearn.report.run import run_report
from d2unlearn.runtime import atomic_write, fingerprint, read_json, write_json
from d2unlearn.schema import ClaimResult, Evaluation, GateSummary
from d2unlearn.serialization import record_to_json, write_evaluation

from .synthetic import THRESHOLD
from .test_page import Page

CLAIMS = (
    ClaimResult("gone", "Gone from the weights", "holds", "storage", "layer 1", "0.01", "Gone from the weights: holds. <b>."),
    ClaimResult("comes_back", "Does not come back", "does not hold", "relearning", "80", "0.4", "Does not come back: no."),
    ClaimResult("refused", "Nothing gets past the gate", "not shown", "", "", "", "Nothing gets past the gate: not shown."),
)


def written(folder: Path, gate: str = "g" * 64) -> Path:
    """An audit's file with more in it than a report reads, and a page beside it."""
    claims = [record_to_json(claim, "claim") for claim in CLAIMS]
    write_json(folder / "audit.json", {"version": 1, "claims": claims, "level": "quick", "gate": gate, "attacks": []})
    atomic_write(folder / "audit.html", "<!doctype html>")
    return folder


def test_a_report_reads_the_claims_and_links_the_page_from_where_it_stands(tmp_path: Path) -> None:
    folder = written(tmp_path / "audit")
    for source in (folder, folder / "audit.json"):
        assert read_audit_summary(source, tmp_path / "report.html") == AuditSummary(CLAIMS, "quick", "audit/audit.html")
    assert read_audit_summary(folder, tmp_path / "pages" / "report.html").link == "../audit/audit.html"
    (folder / "audit.html").unlink()
    assert read_audit_summary(folder, tmp_path / "report.html").link == ""


def test_another_gate_s_audit_and_what_is_no_audit_are_turned_down(tmp_path: Path) -> None:
    folder = written(tmp_path / "audit")
    assert read_audit_summary(folder, tmp_path / "report.html", "g" * 64).claims == CLAIMS
    with pytest.raises(DataError, match=r"audit.json is of an artifact with another gate; run `d2unlearn audit` on this one"):
        read_audit_summary(folder, tmp_path / "report.html", "h" * 64)
    with pytest.raises(DataError, match=r"no-such does not exist; give the audit.json"):
        read_audit_summary(tmp_path / "no-such", tmp_path / "report.html")
    write_json(tmp_path / "other.json", {"version": 1})
    with pytest.raises(DataError, match=r"other.json is not an audit: audit lacks claims, level; give the audit.json"):
        read_audit_summary(tmp_path / "other.json", tmp_path / "report.html")


def test_the_page_shows_every_claim_once_and_escapes_it(before: Evaluation, after: Evaluation, gate: GateSummary) -> None:
    page = build(before, after, gate, {}, AuditSummary(CLAIMS, "quick", "audit/audit.html"))
    read = Page(page)
    assert read.open == []
    assert {"href": "audit/audit.html"} in read.of("a")
    for claim in CLAIMS:
        assert html.unescape(page).count(claim.why) == 1
    assert [text for text in read.text("h2") if text == "Under attack"] == ["Under attack"]
    assert "Under attack" not in build(before, after, gate, {})


def test_a_claim_that_does_not_hold_is_a_reservation(before: Evaluation, after: Evaluation, gate: GateSummary) -> None:
    found = {concern.rule: (concern.level, concern.text) for concern in concerns(BeforeAfter(before, after, gate, CLAIMS))}
    assert found["attacked"] == ("warn", "Under attack this does not hold: Does not come back.")
    assert "It worked, with reservations." in build(before, after, gate, {}, AuditSummary(CLAIMS, "quick", ""))
    held = (CLAIMS[0], CLAIMS[2])
    assert "attacked" not in {concern.rule for concern in concerns(BeforeAfter(before, after, gate, held))}


def test_run_report_holds_the_audit_to_the_artifact_s_gate(
    before: Evaluation, after: Evaluation, gate: GateSummary, tmp_path: Path
) -> None:
    for name, evaluation in (("before", before), ("after", after)):
        write_evaluation(tmp_path / f"{name}.json", evaluation)
    artifact = tmp_path / "artifact"
    content = {**record_to_json(gate, "gate"), "false_refusal": list(gate.false_refusal or ()), "miss_rate": None}
    write_json(artifact / "d2_gate.json", {**content, "score_name": after.score_name, "threshold": THRESHOLD})
    write_json(artifact / "d2_manifest.json", {})
    of_this = written(tmp_path / "audit", fingerprint(read_json(artifact / "d2_gate.json")))
    given = (tmp_path / "before.json", tmp_path / "after.json", artifact, tmp_path / "report.html")
    page = run_report(*given, of_this).read_text(encoding="utf-8")
    assert 'href="audit/audit.html"' in page
    assert read_json(tmp_path / "report.html.manifest.json")["audit"] == str(of_this)
    with pytest.raises(DataError, match="another gate"):
        run_report(*given, written(tmp_path / "other"))
