"""The audit as a whole, with planted attacks on tiny models: verdicts, what is left out, and going on after a kill."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from cli.command import d2
from d2unlearn.attacks.reading import NotShownError, Reading, reading_of
from d2unlearn.audit import making, run
from d2unlearn.audit.claims import CLAIMS, FORGET
from d2unlearn.audit.parts import AttackPlan, AuditRows, Cost, Level, Part, Subject, asked_sets
from d2unlearn.audit.records import Audit, read_audit
from d2unlearn.audit.run import run_audit
from d2unlearn.audit.summary import AT_REST, NO_ORACLE, Readings, control_warnings, not_asked, row_warnings
from d2unlearn.config import AuditSettings
from d2unlearn.errors import ArtifactError, ConfigError, DataError
from d2unlearn.schema import Example, Message
from gate import tiny

HELD = {"artifact": 0.3, "original": 0.9, "oracle": 0.0}
"""What the planted attack reads of each model."""


class Planted:
    """Attacks that read what they are told to; every part that is made is noted."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.held = dict(HELD)
        self.fails_at = ""
        self.deepest = {"oracle": 2}

    def plan(self, name: str, **options: object) -> AttackPlan:
        def parts(subject: Subject, rows: AuditRows, level: Level, seed: int) -> Iterator[Part]:
            for asked in asked_sets(subject, rows, None, seed):
                for step in range(1, 1 + self.deepest.get(subject.name, 2)):

                    def made(step: int = step, asked: object = asked) -> Sequence[Reading]:
                        return self._readings(f"{name}, {subject.name}, {asked.name}, {step}", subject, asked, step)  # type: ignore[attr-defined]

                    yield Part(f"{asked.name}, {step}", [step, asked.name, asked.groups], Cost(scored=1), made, "gone")

        return AttackPlan(name, f"{name}'s title", "What is planted.", parts, claims=("gone",), **options)  # type: ignore[arg-type]

    def _readings(self, name: str, subject: Subject, asked: object, step: int) -> list[Reading]:
        if name == self.fails_at:
            raise KeyboardInterrupt
        self.made.append(name)
        value = self.held[subject.name] / step if asked.name == FORGET else 0.0  # type: ignore[attr-defined]
        values = [value] * len(asked.tokens)  # type: ignore[attr-defined]
        return [reading_of(asked, {"step": step}, "answer_probability", values)]  # type: ignore[arg-type]


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Planted:
    attacks = Planted()
    monkeypatch.setenv("D2UNLEARN_CACHE", str(tmp_path / "cache"))
    table = {name: attacks.plan(name) for name in ("first", "second")}
    monkeypatch.setattr(run, "ATTACKS", table)
    monkeypatch.setattr(making, "measured_speed", lambda *_: _Instant())
    return attacks


class _Instant:
    def seconds(self, cost: Cost) -> float:
        return 0.0


@pytest.fixture
def settings(tmp_path: Path) -> AuditSettings:
    for seed, name in enumerate(HELD):
        tiny.model(seed).save_pretrained(tmp_path / name)
        tiny.tokenizer().save_pretrained(tmp_path / name)
    for seed, (name, n) in enumerate({"forget": 200, "retain": 10, "never_seen": 200}.items()):
        asked = tiny.questions(seed, n)
        rows = [{"question": q, "answer": "w1 w2", "group": f"{name}-{i % 20}"} for i, q in enumerate(asked)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {name: str(tmp_path / f"{name}.jsonl") for name in ("forget", "retain")}
    models = {name: str(tmp_path / name) for name in ("original", "oracle")}
    return AuditSettings(model=str(tmp_path / "artifact"), output=str(tmp_path / "audit"), **files, **models)


def audited(settings: AuditSettings) -> Audit:
    return read_audit(run_audit(settings))


def verdicts(record: Audit) -> dict[str, str]:
    return {claim.name: claim.verdict for claim in record.claims}


def test_a_planted_secret_is_found_and_everything_else_is_not_shown(planted: Planted, settings: AuditSettings) -> None:
    record = audited(settings)
    assert verdicts(record) == {"gone": "does not hold", **dict.fromkeys(list(CLAIMS)[1:], "not shown")}
    gone = record.claims[0]
    assert (gone.attack, gone.setting) == ("first", "step 1")
    assert "answer probability 0.300, 0.000 in the model that never knew; difference 0.300" in gone.numbers
    setting = record.attacks[0].settings[0]
    assert {name: result.value for name, result in setting.values.items()} == pytest.approx(HELD)
    assert setting.difference == pytest.approx(0.3)
    assert record.control == "oracle"
    assert (record.rows["forget"].n, record.rows["forget"].groups) == (200, 20)
    assert record.warnings == ("the artifact has no gate: nothing is refused, and nothing about refusals is shown",)


def test_a_clean_model_holds(planted: Planted, settings: AuditSettings) -> None:
    planted.held["artifact"] = 0.01
    assert verdicts(audited(settings))["gone"] == "holds"


def test_without_a_model_that_never_knew_nothing_is_compared(planted: Planted, settings: AuditSettings) -> None:
    record = audited(replace(settings, oracle=None))
    assert verdicts(record)["gone"] == "not shown"
    assert "(--oracle)" in record.claims[0].why
    assert record.control == "none"


def test_facts_that_were_never_seen_stand_in(planted: Planted, settings: AuditSettings, tmp_path: Path) -> None:
    record = audited(replace(settings, oracle=None, never_seen=str(tmp_path / "never_seen.jsonl")))
    assert verdicts(record)["gone"] == "does not hold"
    assert "on facts that it never saw" in record.claims[0].numbers
    assert record.control == "never_seen"


def test_an_attack_that_cannot_be_made_is_named_and_the_others_run(
    planted: Planted, settings: AuditSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*_: object) -> Iterator[Part]:
        raise NotShownError("its layers are tied")

    planted.held["artifact"] = 0.0
    table = {"first": planted.plan("first"), "second": AttackPlan("second", "S", "", cannot, claims=("gone",))}
    monkeypatch.setattr(run, "ATTACKS", table)
    record = audited(settings)
    assert record.left_out == {"second": "artifact: its layers are tied"}
    assert verdicts(record)["gone"] == "not shown"
    assert "Not every attack of this claim was made" in record.claims[0].why


def test_an_attack_that_fails_in_a_part_is_named_and_the_others_run(
    planted: Planted, settings: AuditSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parts(*_: object) -> Iterator[Part]:
        def fails() -> list[Reading]:
            raise DataError("the template raises")

        yield Part("part", [], Cost(), fails, "gone")

    table = {"first": planted.plan("first"), "second": AttackPlan("second", "S", "", parts, claims=("gone",))}
    monkeypatch.setattr(run, "ATTACKS", table)
    record = audited(settings)
    assert record.left_out == {"second": "artifact: the template raises"}
    assert verdicts(record)["gone"] == "does not hold"


def test_an_attack_that_finds_nothing_in_the_original_clears_nothing(planted: Planted, settings: AuditSettings) -> None:
    planted.held |= {"artifact": 0.0, "original": 0.01}
    record = audited(settings)
    assert verdicts(record)["gone"] == "not shown"
    assert record.attacks[0].reason == "it finds nothing in the original either, which knows"


def test_other_groups_or_another_configuration_are_another_audit(planted: Planted, settings: AuditSettings) -> None:
    run_audit(settings)
    forget = Path(str(settings.forget))
    text = forget.read_text()
    forget.write_text(text.replace('"forget-0"', '"forget-1"'))
    with pytest.raises(ArtifactError, match="holds the result of other inputs"):
        run_audit(settings)
    forget.write_text(text)
    config = Path(str(settings.oracle)) / "config.json"
    config.write_text(config.read_text().replace("1e-06", "1e-05"))
    with pytest.raises(ArtifactError, match="holds the result of other inputs"):
        run_audit(settings)


def test_an_output_without_a_name_is_turned_down(planted: Planted, settings: AuditSettings) -> None:
    for name in (".", ".."):
        with pytest.raises(ArtifactError, match="name a folder of its own"):
            run_audit(replace(settings, output=name))


def test_one_attack_alone_may_find_and_cannot_clear(planted: Planted, settings: AuditSettings) -> None:
    assert verdicts(audited(replace(settings, attack=["second"])))["gone"] == "does not hold"
    planted.held["artifact"] = 0.0
    record = audited(replace(settings, attack=["second"], output=f"{settings.output}-2", seed=1))
    assert verdicts(record)["gone"] == "not shown"
    assert record.left_out == {"first": "not asked for"}


def test_a_setting_that_the_control_lacks_keeps_a_claim_from_holding(planted: Planted, settings: AuditSettings) -> None:
    """Such as a layer, or a learning rate, that a model of another size does not have."""
    planted.held["artifact"], planted.deepest["oracle"] = 0.0, 1
    gone = audited(settings).claims[0]
    assert gone.verdict == "not shown"
    assert "One of its settings has nothing to be held against (step 2)" in gone.why


def test_an_attack_that_has_no_parts_is_not_made(
    planted: Planted, settings: AuditSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted.held["artifact"] = 0.0
    empty = AttackPlan("second", "S", "", lambda *_: (), claims=("gone",))
    monkeypatch.setattr(run, "ATTACKS", {"first": planted.plan("first"), "second": empty})
    gone = audited(settings).claims[0]
    assert gone.verdict == "not shown"
    assert "Not every attack of this claim was made" in gone.why


def test_a_control_that_would_clear_anything_is_refused(planted: Planted, settings: AuditSettings, tmp_path: Path) -> None:
    for name, option in (("artifact", "--model"), ("original", "--original")):
        with pytest.raises(ConfigError, match=f"--oracle has the very weights of {option}"):
            run_audit(replace(settings, oracle=str(tmp_path / name)))
    for name in ("forget", "retain"):
        rows = (tmp_path / "never_seen.jsonl").read_text() + (tmp_path / f"{name}.jsonl").read_text()
        (tmp_path / "mixed.jsonl").write_text(rows)
        with pytest.raises(DataError, match=f"mixed.jsonl:201: rows of --never-seen stand in --{name} too"):
            run_audit(replace(settings, never_seen=str(tmp_path / "mixed.jsonl")))
    reworded = replace(settings, never_seen=settings.forget, paraphrased=settings.forget)
    with pytest.raises(DataError, match="stand in --paraphrased too"):
        run_audit(replace(reworded, forget=str(tmp_path / "never_seen.jsonl")))
    tiny.tokenizer({**tiny.SPECIAL, "eos_token": "w3"}).save_pretrained(tmp_path / "oracle")
    with pytest.raises(ConfigError, match="--oracle has another tokenizer or chat template"):
        run_audit(settings)
    assert planted.made == []


def test_rows_that_should_go_and_stay_at_once_are_refused(planted: Planted, settings: AuditSettings) -> None:
    """A gate that does its work would be told that it refuses what is legitimate."""
    with pytest.raises(DataError, match=r"forget.jsonl:1: rows of --retain stand in --forget too \(200 of them\)"):
        run_audit(replace(settings, retain=settings.forget))
    with pytest.raises(DataError, match="rows of --near stand in --forget too"):
        run_audit(replace(settings, near=settings.forget))
    assert planted.made == []


def test_the_original_s_parts_can_be_held_against_an_oracle_alone(
    planted: Planted, settings: AuditSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(run, "ATTACKS", {"first": planted.plan("first", uses_original=True)})
    gone = audited(replace(settings, oracle=None, never_seen=str(tmp_path / "never_seen.jsonl"))).claims[0]
    assert (gone.verdict, NO_ORACLE[1:] in gone.why) == ("not shown", True)


def test_the_command_says_what_the_record_warns_of(planted: Planted, settings: AuditSettings) -> None:
    given = {name: getattr(settings, name) for name in ("model", "original", "oracle", "forget", "retain", "output")}
    ran = d2("audit", *(word for name, value in given.items() for word in (f"--{name}", value)))
    assert (ran.code, f"warning: {run.NO_GATE}" in ran.out.splitlines()) == (0, True)


def test_parts_kept_under_other_names_or_groups_of_rows_are_made_again(
    planted: Planted, settings: AuditSettings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Rows are paired by their ids and drawn by their groups, which a part's own hash may not know."""
    parts = planted.plan("first").parts

    def without_groups(*of: object) -> Iterator[Part]:
        yield from (replace(part, about=part.name) for part in parts(*of))  # type: ignore[arg-type]

    plan = AttackPlan("first", "F", "", without_groups, claims=("gone",))
    monkeypatch.setattr(run, "ATTACKS", {"first": plan})
    planted.held = {"artifact": 0.3, "original": 0.9, "oracle": 0.2}
    first = audited(settings)
    made = list(planted.made)
    (tmp_path / "forget.jsonl").rename(tmp_path / "other.jsonl")
    again = audited(replace(settings, forget=str(tmp_path / "other.jsonl"), output=f"{settings.output}-2"))
    assert planted.made == made * 2
    assert again.claims == first.claims
    rows = [json.loads(line) for line in (tmp_path / "other.jsonl").read_text().splitlines()]
    ungrouped = "".join(json.dumps({**row, "group": "all"}) + "\n" for row in rows)
    (tmp_path / "other.jsonl").write_text(ungrouped)
    alone = audited(replace(settings, forget=str(tmp_path / "other.jsonl"), output=f"{settings.output}-3"))
    assert "Its rows are of 1 group" in alone.claims[0].why


def test_stopped_it_goes_on_where_it_was(planted: Planted, settings: AuditSettings) -> None:
    planted.fails_at = "second, original, forget, 2"
    with pytest.raises(KeyboardInterrupt):
        run_audit(settings)
    before = list(planted.made)
    planted.fails_at = ""
    whole = audited(settings)
    assert len(planted.made) == len(set(planted.made)) == 2 * 3 * 2
    assert planted.made[: len(before)] == before
    assert not Path(f"{settings.output}.partial").exists()
    planted.made.clear()
    assert audited(settings) == whole
    assert planted.made == []


def test_original_and_oracle_are_attacked_once_for_all_artifacts(
    planted: Planted, settings: AuditSettings, tmp_path: Path
) -> None:
    run_audit(settings)
    planted.made.clear()
    tiny.model(7).save_pretrained(tmp_path / "artifact")
    run_audit(replace(settings, output=f"{settings.output}-2"))
    assert {name.split(", ")[1] for name in planted.made} == {"artifact"}


def test_what_is_kept_from_before_changes_neither_the_readings_nor_their_order(
    planted: Planted, settings: AuditSettings, tmp_path: Path
) -> None:
    """Of the oracle parts are kept, of the original some, of the artifact none: as after a kill in another output."""

    def read(name: str) -> dict[str, bytes]:
        asked = replace(settings, output=str(tmp_path / name), redact=True, label="same")
        run_audit(asked)
        return {file.name: file.read_bytes() for file in (tmp_path / name / "attacks").iterdir()}

    whole = read("whole")
    kept = sorted((tmp_path / "cache" / "audit").iterdir())
    for number, file in enumerate(kept):
        if number % 3 or json.loads(file.read_text())["subject"] == "artifact":
            file.unlink()
    planted.made.clear()
    assert read("again") == whole
    assert 0 < len(planted.made) < len(kept)


def test_readings_are_written_by_attack_without_texts(planted: Planted, settings: AuditSettings) -> None:
    run_audit(settings)
    content = json.loads((Path(settings.output) / "attacks" / "first.json").read_text())["readings"]
    assert len(content) == 3 * 2
    assert all(each["readings"][0]["texts"] == [] for each in content)
    assert sum(len(each["readings"][0]["values"]) for each in content) == 6 * 200


@pytest.mark.parametrize(
    ("oracle", "unseen", "warned"),
    [(0.3, 0.2, []), (0.85, 0.2, ["the model that never knew (0.850)"]), (0.3, 0.9, ["facts that were never seen (0.900)"])],
)
def test_a_control_that_knows_as_much_as_the_original_is_warned_of(oracle: float, unseen: float, warned: list[str]) -> None:
    def read(subject: str, rows: str, value: float) -> Readings:
        reading = Reading(AT_REST, "answer_probability", rows, ("a", "b"), ("a", "b"), (value, value))
        return Readings("layers", subject, "gone", False, (reading,))

    done = [read("original", FORGET, 0.9), read("oracle", FORGET, oracle), read("original", "never_seen", unseen)]
    warnings = control_warnings(done)
    assert len(warnings) == len(warned)
    assert all(words in warning for words, warning in zip(warned, warnings, strict=True))


def test_rows_that_are_not_asked_are_counted_by_reason() -> None:
    def read(subject: str, not_asked_of: dict[str, int]) -> Readings:
        reading = Reading({"wording": "a"}, "told", FORGET, ("a",), ("a",), (math.nan,), (), not_asked_of)
        return Readings("wordings", subject, "other_words", False, (reading,))

    done = [read("artifact", {"no words": 3, "not drawn": 9}), read("artifact", {"no words": 5}), read("oracle", {"no": 7})]
    assert not_asked(done) == {"wordings": ["no words (up to 5 forget rows in a setting)"]}
    bare = Example("b", (), "plain text", "f:2")
    asked = Example("a", (Message("user", "Who?"),), "She.", "f:1")
    assert row_warnings({"forget": [asked, bare], "never_seen": [asked], "near": []}) == [
        "1 of 2 forget rows have no question: attacks that ask leave them out"
    ]


def test_redacted_no_file_names_a_group(planted: Planted, settings: AuditSettings) -> None:
    """Groups are often called by the persons that are to be forgotten. The same one keeps one number everywhere."""
    record = audited(replace(settings, redact=True))
    assert (record.redacted, record.examples, record.rows["forget"].groups) == (True, (), 20)
    kept = list((Path(settings.output).parent / "cache").rglob("*.json"))
    assert len(kept) == 2 * 3 * 2
    files = [*(file for file in Path(settings.output).rglob("*") if file.is_file()), *kept]
    assert [file for file in files if "forget-3" in file.read_text()] == []
    content = json.loads((Path(settings.output) / "attacks" / "first.json").read_text())["readings"]
    assert {tuple(each["readings"][0]["groups"]) for each in content} == {tuple(f"group {1 + i % 20}" for i in range(200))}


def test_where_the_oracle_has_nothing_to_say_facts_never_seen_stand_in(
    planted: Planted, settings: AuditSettings, tmp_path: Path
) -> None:
    """Such as a layer that it lacks, or a rate that destroyed it (NaN)."""
    planted.held["artifact"], planted.deepest["oracle"] = 0.01, 1
    both = replace(settings, never_seen=str(tmp_path / "never_seen.jsonl"))
    record = audited(both)
    assert (verdicts(record)["gone"], record.control) == ("holds", "oracle")
    planted.deepest["oracle"], planted.held["oracle"] = 2, math.nan
    (tmp_path / "other").mkdir()
    tiny.model(8).save_pretrained(tmp_path / "other")
    tiny.tokenizer().save_pretrained(tmp_path / "other")
    destroyed = replace(settings, oracle=str(tmp_path / "other"), output=f"{settings.output}-2")
    record = audited(destroyed)
    assert "what it is held against was not" in record.attacks[0].reason
    record = audited(replace(destroyed, never_seen=both.never_seen, output=f"{settings.output}-3"))
    assert verdicts(record)["gone"] == "holds"


def test_an_audit_judged_by_other_rules_is_judged_again_without_an_attack(planted: Planted, settings: AuditSettings) -> None:
    """Redacted or not: what was read stands beside the record."""
    whole = audited(replace(settings, redact=True))
    file = Path(settings.output) / "audit.json"
    content = json.loads(file.read_text())
    content["claims"][0]["verdict"], content["attacks"][0]["verdict"], content["rules"] = "holds", "holds", 1
    file.write_text(json.dumps(content))
    planted.made.clear()
    assert audited(replace(settings, redact=True)) == whole
    assert planted.made == []
    content["promised"] = None
    file.write_text(json.dumps(content))
    for readings in (Path(settings.output) / "attacks").iterdir():
        readings.unlink()
    with pytest.raises(DataError, match="holds no readings"):
        audited(replace(settings, redact=True))


def test_what_cannot_be_is_said(planted: Planted, settings: AuditSettings) -> None:
    with pytest.raises(ConfigError, match="--attack third: there is first, second"):
        run_audit(replace(settings, attack=["third"]))
    with pytest.raises(ConfigError, match="one of --quick, --thorough and --exhaustive"):
        replace(settings, quick=True, thorough=True)
    with pytest.raises(DataError, match="does not exist"):
        run_audit(replace(settings, never_seen="nothing.jsonl"))
    run_audit(settings)
    with pytest.raises(ArtifactError, match="holds the result of other inputs or settings"):
        run_audit(replace(settings, seed=3))
