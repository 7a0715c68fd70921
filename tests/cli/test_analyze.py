"""`d2unlearn analyze` by the command line: a result and a page, the second time at once, bad input in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from d2unlearn.analysis import model as model_trial
from d2unlearn.analysis import sets
from d2unlearn.analysis.page import build_page
from d2unlearn.analysis.records import read_analysis

from .command import d2
from .conftest import Walked

FEW = ("--max-new-tokens", 4, "--limit", 12, "--disturbed", 3)


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sets, "N_BOOT", 20)
    monkeypatch.setattr(model_trial, "N_CHOICES", 5)
    monkeypatch.setattr(model_trial, "N_FITTED_CHOICES", 2)


def test_an_artifact_is_analysed_once_and_its_page_is_redrawn(walked: Walked, tmp_path: Path) -> None:
    output = tmp_path / "trial"
    rows = ("--forget", walked.given.forget, "--retain", walked.given.test, "--also-retain", f"more={walked.given.retain}")
    models = ("--model", walked.artifact, "--original", walked.given.model, "--calibration", walked.given.retain)
    command = ("analyze", *models, *rows, "--output", output, *FEW)
    ran = d2(*command)
    assert (ran.code, ran.out.splitlines()) == (0, [str(output / "analysis.json"), str(output / "analysis.html")]), ran
    found = read_analysis(output / "analysis.json")
    assert [each.role for each in found.models] == ["original", "model"]
    assert [(each.name, each.n) for each in found.sets] == [("forget", 12), ("retain", 12), ("more", 12)]
    assert found.reference == f"energy/{found.gate_score}"
    page = (output / "analysis.html").read_text(encoding="utf-8")
    assert page == build_page(found)
    (output / "analysis.html").unlink()
    again = d2(*command)
    assert (again.code, again.out) == (0, ran.out)
    assert again.err.splitlines()[-1] == f"{output} is done: same inputs, same settings"
    assert (output / "analysis.html").read_text(encoding="utf-8") == page
    other = d2(*command, "--seed", 1)
    assert (other.code, other.out) == (2, "")
    assert f"error: {output} holds the result of other inputs or settings" in other.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("--forget FORGET --retain TEST --output new", "model"),
        ("--model ARTIFACT --forget no.jsonl --retain TEST --output new", "no.jsonl does not exist"),
        ("--model ARTIFACT --forget FORGET --retain TEST --calibration no.jsonl --output new", "no.jsonl does not exist"),
        (
            "--model ARTIFACT --forget FORGET --retain TEST --also-retain no.jsonl --output new",
            "--also-retain takes NAME=VALUE",
        ),
        ("--model ARTIFACT --forget FORGET --retain TEST --output new --limit 3", "too few to fit on one half"),
        ("--model ./no --forget FORGET --retain TEST --output new", "./no is not a folder"),
        ("--model ARTIFACT --oracle ./no --forget FORGET --retain TEST --output new", "./no is not a folder"),
        ("--model ARTIFACT --forget FORGET --retain TEST --output new --disturbed 0", "disturbed"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    walked: Walked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"ARTIFACT": walked.artifact, "FORGET": walked.given.forget, "TEST": walked.given.test}
    ran = d2("analyze", *(places.get(word, word) for word in command.split()))
    assert (ran.code, says in ran.err.splitlines()[-1]) == (2, True), ran
    assert ran.err.splitlines()[-1].startswith("error: ")
    assert list(tmp_path.iterdir()) == []
