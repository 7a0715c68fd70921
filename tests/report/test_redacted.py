"""`--redact`: nobody's words in the evaluation or on its page, and every number as it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from d2unlearn.redaction import is_redacted, redacted
from d2unlearn.report.run import run_report
from d2unlearn.schema import EVALUATION_FILE, MANIFEST_FILE, Evaluation
from d2unlearn.serialization import evaluation_to_json, write_evaluation


def texts(evaluation: Evaluation) -> set[str]:
    """All that somebody wrote or a model said, and the ids."""
    examples = [example for each in evaluation.sets for example in each.examples]
    found = {e.question for e in examples} | {e.answer for e in examples} | {e.raw_answer for e in examples}
    return {text for text in found | {e.guarded_answer or "" for e in examples} | {e.example_id for e in examples} if text}


def test_texts_and_ids_go_and_numbers_stay(after: Evaluation) -> None:
    bare = redacted(after)
    stored = json.dumps(evaluation_to_json(bare))
    assert is_redacted(bare)
    assert not is_redacted(after)
    assert len(texts(after)) > 100
    assert [text for text in texts(after) if json.dumps(text) in stored] == []
    for before_it, it in zip(after.sets, bare.sets, strict=True):
        assert it.metrics == before_it.metrics
        for number, (full, without) in enumerate(zip(before_it.examples, it.examples, strict=True), 1):
            assert without.example_id == f"{it.name} {number}"
            assert without.scores is full.scores
            assert (without.refused, without.gate_score) == (full.refused, full.gate_score)
            assert (without.prompt_energy, without.answer_energy) == (full.prompt_energy, full.answer_energy)
    assert redacted(bare) == bare


@pytest.mark.parametrize("way", ["asked for", "one of them is"])
def test_a_page_without_texts_has_the_tables_and_says_what_is_missing(
    before: Evaluation, after: Evaluation, tmp_path: Path, way: str
) -> None:
    for name, evaluation in (("before", before), ("after", after if way == "asked for" else redacted(after))):
        (tmp_path / name).mkdir()
        write_evaluation(tmp_path / name / EVALUATION_FILE, evaluation)
    given = (tmp_path / "before", tmp_path / "after", None, tmp_path / "page.html")
    page = run_report(*given, redact=way == "asked for").read_text(encoding="utf-8")
    questions = [example.question for each in after.sets for example in each.examples]
    assert [text for text in questions if text in page] == []
    assert "Texts were left out of this page (--redact)." in page
    assert "No question was evaluated" not in page
    full = run_report(tmp_path / "before", tmp_path / "before", None, tmp_path / "full.html").read_text(encoding="utf-8")
    assert any(text in full for text in questions)


def test_the_page_shows_when_and_of_which_weights(before: Evaluation, after: Evaluation, tmp_path: Path) -> None:
    for name, evaluation in (("before", before), ("after", after)):
        write_evaluation(tmp_path / f"{name}.json", evaluation)
    (tmp_path / "artifact").mkdir()
    told = {
        "made": "2026-01-31T12:00:00+00:00",
        "calibration": {"made": "2026-02-01T08:30:00+00:00"},
        "weights": {"original": "0f" * 32, "artifact": "a1" * 32},
    }
    (tmp_path / "artifact" / MANIFEST_FILE).write_text(json.dumps(told))
    path = run_report(tmp_path / "before.json", tmp_path / "after.json", tmp_path / "artifact", tmp_path / "page.html")
    page = path.read_text(encoding="utf-8")
    for shown in ("2026-01-31T12:00:00+00:00", "2026-02-01T08:30:00+00:00", "0f" * 32, "a1" * 32, "original weights, sha256"):
        assert shown in page
