"""A guard of untouched weights under audit: asked in a gate's place, fitted on rows of its own, judged on others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from d2unlearn.attacks.reading import Reading
from d2unlearn.attacks.requests import answer_readings, plain_request
from d2unlearn.audit import making, run
from d2unlearn.audit.parts import AttackPlan, AuditRows, Cost, Level, Part, Subject
from d2unlearn.audit.plans.asking import GUARDED, Way, answers_of, ways
from d2unlearn.audit.records import read_audit
from d2unlearn.audit.run import run_audit
from d2unlearn.config import AuditSettings
from d2unlearn.errors import ConfigError, DataError
from gate import tiny
from guards.conftest import ABOUT, requests


def refusals(subject: Subject, rows: AuditRows, level: Level, seed: int) -> Iterator[Part]:
    """What is refused of every set, through the guard where there is one."""
    for way in ways(subject):

        def made(way: Way = way) -> list[Reading]:
            answer, readings = answers_of(subject, way), list[Reading]()
            for name, of_set in {"forget": rows.forget, "retain": rows.retain}.items():
                replies = answer([plain_request(row) for row in of_set], 4)
                readings += answer_readings(name, of_set, {"asked": way.name}, replies, ("refused",))
            return readings

        yield Part(way.name, [], Cost(answered=1), made, "nothing_else", guarded=way == GUARDED)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AuditSettings:
    """A model that nothing was removed from, and questions of two kinds, told by their words."""
    monkeypatch.setenv("D2UNLEARN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(run, "ATTACKS", {"asked": AttackPlan("asked", "Asked", "", refusals, subjects=("artifact",))})
    monkeypatch.setattr(making, "measured_speed", lambda *_: type("Instant", (), {"seconds": lambda *_: 0.0})())
    tiny.model(0).save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    sets = {"forget": requests(1, 60, ABOUT), "retain": requests(5, 40, range(20, 60)), "fit": requests(2, 240, range(20, 60))}
    for name, rows in sets.items():
        lines = [json.dumps({"question": row.question, "answer": row.answer}) + "\n" for row in rows]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    files = {name: str(tmp_path / f"{name}.jsonl") for name in ("forget", "retain")}
    model = str(tmp_path / "model")
    return AuditSettings(
        model=model,
        original=model,
        output=str(tmp_path / "audit"),
        guard="input_classifier",
        guard_retain=str(tmp_path / "fit.jsonl"),
        guard_parameters={"C": 0.5},
        max_false_refusal=0.05,
        **files,
    )


def test_a_guard_is_asked_in_a_gate_s_place(settings: AuditSettings) -> None:
    """Raw, nothing is refused; through the guard what it was fitted on is, and little else. Its promise is what is allowed."""
    record = read_audit(run_audit(settings))
    shares = {(result.guarded, one.rows): one.values["artifact"].value for result in record.attacks for one in result.settings}
    assert (shares[False, "forget"], shares[False, "retain"]) == (0.0, 0.0)
    assert shares[True, "forget"] >= 0.9
    assert shares[True, "retain"] <= 0.2
    retained = next(one for result in record.attacks if result.guarded for one in result.settings if one.rows == "retain")
    assert retained.difference == pytest.approx(shares[True, "retain"] - 0.05)
    assert record.guard == "input_classifier (C 0.5)"
    assert record.gate != ""
    assert "no gate" not in " ".join(record.warnings)


def test_a_guard_that_cannot_be_audited_or_would_be_judged_on_what_it_knows_is_turned_down(settings: AuditSettings) -> None:
    for wrong, said in (
        ({"guard": "moat"}, "guard 'moat' is not known; known: prompt_guard, input_classifier"),
        ({"guard_parameters": {"D": 1}}, "guard input_classifier: "),
        ({"guard": "embedding_corruption", "guard_parameters": {}}, "it does not decide on a request before it is answered"),
    ):
        with pytest.raises(ConfigError, match=said):
            run_audit(replace(settings, **wrong))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="needs --guard-retain"):
        replace(settings, guard_retain=None)
    with pytest.raises(ConfigError, match="name one with --guard"):
        replace(settings, guard=None)
    with pytest.raises(DataError, match="rows of --retain stand in --guard-retain too \\(40 of them\\)"):
        run_audit(replace(settings, guard_retain=settings.retain))
