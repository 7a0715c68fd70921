"""`calibrate` on a folder: which rows it uses, and by which seed it splits them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cli.command import d2, refused
from d2unlearn.artifact import manifest
from d2unlearn.config import CalibrateSettings, ServeSettings
from d2unlearn.data.holdout import hold_out
from d2unlearn.data.identity import row_key
from d2unlearn.data.records import content_hash, read_examples
from d2unlearn.errors import ArtifactError, GateError
from d2unlearn.gate import EnergyGate
from d2unlearn.gate.run import run_calibrate
from d2unlearn.report.gate import read_gate_summary
from d2unlearn.runtime import fingerprint, write_json
from d2unlearn.schema import GATE_FILE, MANIFEST_FILE
from d2unlearn.serving.run import load
from d2unlearn.signing import SIGNATURE_FILE, check_signature

from . import tiny

UNLEARN_SEED = 5


@pytest.fixture
def retain(tmp_path: Path) -> Path:
    path = tmp_path / "retain.jsonl"
    path.write_text("".join(json.dumps({"question": q, "answer": "w1 w2"}) + "\n" for q in tiny.questions(1, 40)))
    return path


@pytest.fixture
def artifact(tmp_path: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, retain: Path) -> Path:
    """A folder as `unlearn` leaves it: it set the first 30 rows aside."""
    folder = tmp_path / "artifact"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    held_out = [content_hash(row) for row in read_examples(retain)[:30]]
    write_json(folder / MANIFEST_FILE, manifest("unlearn", "key", settings={"seed": UNLEARN_SEED}, held_out=held_out))
    return folder


def settings(artifact: Path, retain: Path, seed: int | None = None, *, unseen: bool = False) -> CalibrateSettings:
    return CalibrateSettings(str(artifact), str(retain), unseen=unseen, max_false_refusal=0.2, max_new_tokens=2, seed=seed)


@pytest.fixture
def others(tmp_path: Path) -> Path:
    """Rows of which the manifest says nothing."""
    path = tmp_path / "others.jsonl"
    path.write_text("".join(json.dumps({"question": f"{q} w1", "answer": "w3"}) + "\n" for q in tiny.questions(2, 40)))
    return path


def test_rows_set_aside_are_found_in_a_file_that_was_saved_anew(artifact: Path, retain: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in retain.read_text().splitlines()]
    anew = tmp_path / "anew.jsonl"
    anew.write_text("".join(json.dumps({**row, "answer": f"{row['answer']} \r"}) + "\n" for row in rows))
    assert next(iter(run_calibrate(settings(artifact, anew)))) == f"30 rows of {anew} that unlearn set aside"


@pytest.mark.parametrize(("given", "used"), [(None, UNLEARN_SEED), (0, 0)])
def test_the_rows_set_aside_are_split_by_the_seed_of_unlearn_unless_another_is_given(
    given: int | None,
    used: int,
    artifact: Path,
    retain: Path,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    lines = list(run_calibrate(settings(artifact, retain, given)))
    assert lines[0] == f"30 rows of {retain} that unlearn set aside"
    gate = EnergyGate.from_pretrained(artifact)
    expected = EnergyGate.calibrate(
        model, tokenizer, read_examples(retain)[:30], max_false_refusal=0.2, max_new_tokens=2, seed=used
    )
    assert gate.seed == used
    assert gate.calibration.calibration_scores == pytest.approx(expected.calibration.calibration_scores, abs=1e-4)
    other = EnergyGate.calibrate(
        model, tokenizer, read_examples(retain)[:30], max_false_refusal=0.2, max_new_tokens=2, seed=used + 1
    )
    assert gate.calibration.calibration_scores != pytest.approx(other.calibration.calibration_scores, abs=1e-4)


def test_saying_the_seed_of_unlearn_is_the_same_as_saying_none(artifact: Path, retain: Path) -> None:
    list(run_calibrate(settings(artifact, retain)))
    (line,) = run_calibrate(settings(artifact, retain, UNLEARN_SEED))
    assert line.endswith("is done: same inputs, same settings")


def test_a_gate_that_looks_at_turns_alone_is_made_anew(artifact: Path, retain: Path) -> None:
    list(run_calibrate(settings(artifact, retain)))
    made = EnergyGate.from_pretrained(artifact)
    replace(made, sentences=False).save(artifact)
    assert "sentences" not in json.loads((artifact / GATE_FILE).read_text())
    assert list(run_calibrate(settings(artifact, retain)))[-1] == str(artifact / GATE_FILE)
    assert EnergyGate.from_pretrained(artifact) == made


@pytest.mark.parametrize("change", [lambda text: text[:300], lambda text: text.replace('"threshold": -', '"threshold": ', 1)])
def test_a_gate_that_cannot_be_used_is_not_taken_for_done(change: Callable[[str], str], artifact: Path, retain: Path) -> None:
    """Its own message says to run `calibrate` again; that has to help."""
    list(run_calibrate(settings(artifact, retain)))
    path = artifact / GATE_FILE
    good = path.read_text()
    path.write_text(change(good))
    with pytest.raises(GateError, match="run `d2unlearn calibrate` again"):
        EnergyGate.from_pretrained(artifact)
    assert list(run_calibrate(settings(artifact, retain)))[-1] == str(path)
    assert path.read_text() == good


def test_a_second_calibration_is_no_other_for_what_the_first_wrote_and_mends_what_was_lost(
    artifact: Path, retain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """config.json is no weight file: neither the key nor the gate change with it."""
    list(run_calibrate(settings(artifact, retain)))
    written = {path: path.read_bytes() for path in artifact.rglob("*") if path.is_file()}
    monkeypatch.setattr(EnergyGate, "calibrate", lambda *_, **__: pytest.fail("calibrated again"))
    for lost in (None, "README.md", "custom_generate/gated.py"):
        if lost is not None:
            (artifact / lost).unlink()
        (line,) = run_calibrate(settings(artifact, retain))
        assert line.endswith("is done: same inputs, same settings")
        assert {path: path.read_bytes() for path in artifact.rglob("*") if path.is_file()} == written
    config = artifact / "config.json"
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k != "d2_gate"}))
    list(run_calibrate(settings(artifact, retain)))
    assert json.loads(config.read_text())["d2_gate"] == json.loads(written[config])["d2_gate"]


def test_rows_that_nothing_shows_to_be_unseen_make_no_gate(artifact: Path, others: Path, retain: Path) -> None:
    with pytest.raises(GateError, match=r"none of the rows that unlearn set aside are in .*or vouch .* with --unseen"):
        list(run_calibrate(settings(artifact, others)))
    (artifact / MANIFEST_FILE).unlink()
    with pytest.raises(GateError, match=r"has no manifest of unlearn .*or vouch for these rows with --unseen"):
        list(run_calibrate(settings(artifact, retain)))
    assert not (artifact / GATE_FILE).exists()


def test_a_gate_of_rows_vouched_for_says_so_wherever_its_guarantee_stands(artifact: Path, others: Path, retain: Path) -> None:
    lines = list(run_calibrate(settings(artifact, others, unseen=True)))
    assert lines[0] == f"all 40 rows of {others}, which you vouch for as unseen (--unseen)"
    gate, content = EnergyGate.from_pretrained(artifact), json.loads((artifact / GATE_FILE).read_text())
    said = "; that none of these prompts was trained on is the user's word (--unseen): nothing shows it"
    assert (gate.vouched, content["vouched"]) == (True, True)
    assert gate.guarantee.endswith(said)
    assert f"guarantee: {gate.guarantee}" in lines
    summary = read_gate_summary(artifact)
    assert summary is not None
    assert summary.guarantee == content["guarantee"] == gate.guarantee
    assert said in (artifact / "README.md").read_text()
    assert json.loads((artifact / MANIFEST_FILE).read_text())["calibration"]["settings"]["unseen"] is True
    list(run_calibrate(settings(artifact, retain)))
    assert not EnergyGate.from_pretrained(artifact).vouched
    assert "vouched" not in json.loads((artifact / GATE_FILE).read_text())
    assert said not in (artifact / "README.md").read_text()


def test_vouching_neither_covers_the_file_trained_on_nor_is_noted_where_all_rows_were_set_aside(
    artifact: Path, retain: Path, tmp_path: Path
) -> None:
    held_out = hold_out(read_examples(retain), seed=UNLEARN_SEED).held_out
    noted = manifest("unlearn", "key", settings={"seed": UNLEARN_SEED}, held_out=[row_key(row) for row in held_out])
    write_json(artifact / MANIFEST_FILE, noted)
    with pytest.raises(GateError, match="is the file that unlearn trained on: leave --unseen out"):
        list(run_calibrate(settings(artifact, retain, unseen=True)))
    aside = tmp_path / "aside.jsonl"
    aside.write_text("".join(json.dumps({"question": r.prompt[0].content, "answer": r.answer}) + "\n" for r in held_out))
    assert next(iter(run_calibrate(settings(artifact, aside, unseen=True)))) == f"20 rows of {aside} that unlearn set aside"


def test_a_signed_artifact_is_served_and_one_that_was_written_to_is_not(
    artifact: Path, retain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    (tmp_path / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (tmp_path / "key.pub").write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    served = ServeSettings(str(artifact), trust_key=str(tmp_path / "key.pub"))
    monkeypatch.setattr("d2unlearn.serving.run.open_model", lambda settings: pytest.fail("loaded"))
    with pytest.raises(ArtifactError, match="is not signed"):
        load(served)
    command = ("calibrate", "--model", artifact, "--retain", retain, "--max-false-refusal", 0.2, "--max-new-tokens", 2)
    for _ in range(2):  # also where the gate is done
        assert d2(*command, "--sign-key", tmp_path / "key.pem").out.splitlines()[-1] == str(artifact / SIGNATURE_FILE)
        (artifact / "custom_generate" / "more.py").touch()
        with pytest.raises(ArtifactError, match=r"more\.py was not there when it was signed; nothing was loaded"):
            load(served)
        (artifact / "custom_generate" / "more.py").unlink()
        check_signature(artifact, tmp_path / "key.pub")
    assert "key.pem" not in (artifact / MANIFEST_FILE).read_text()
    EnergyGate.from_pretrained(artifact).save(artifact)
    assert "no longer fits and was removed: sign again" in capsys.readouterr().err
    assert not (artifact / SIGNATURE_FILE).exists()
    assert refused(d2(*command, "--sign-key", retain)).startswith(f"--sign-key {retain} is no private key without a password")


def test_calibrating_binds_what_an_earlier_version_did_not(artifact: Path, retain: Path) -> None:
    list(run_calibrate(settings(artifact, retain)))
    path = artifact / GATE_FILE
    good = path.read_text()
    content = {name: value for name, value in json.loads(good).items() if name not in ("bound", "checksum")}
    path.write_text(json.dumps({**content, "checksum": fingerprint(content)}))
    assert list(run_calibrate(settings(artifact, retain)))[-1] == str(path)
    assert path.read_text() == good


def asked_file(path: Path, questions: list[str], **columns: str) -> Path:
    path.write_text("".join(json.dumps({"question": question, **columns}) + "\n" for question in questions))
    return path


@pytest.fixture
def forget(tmp_path: Path) -> Path:
    return asked_file(tmp_path / "forget.jsonl", tiny.questions(7, 12), answer="w3 w4")


def test_near_and_unrelated_rows_are_groups_of_their_own(artifact: Path, retain: Path, forget: Path, tmp_path: Path) -> None:
    near = asked_file(tmp_path / "near.jsonl", tiny.questions(8, 12), answer="w5")
    given = replace(settings(artifact, retain), forget=str(forget), near=str(near), unrelated=str(near))
    lines = list(run_calibrate(given))
    groups = {
        group.group: (group.n, group.conformal is not None) for group in EnergyGate.from_pretrained(artifact).calibration.groups
    }
    assert groups["near"] == groups["unrelated"] == (8, True)  # of twelve, four chose the score; four are enough for 20%
    assert any(line.startswith("  near             guaranteed by 8 questions; refused in the worst wording") for line in lines)


def test_a_near_row_that_is_to_be_forgotten_is_an_error_and_the_old_gate_stays(
    artifact: Path, retain: Path, forget: Path, tmp_path: Path
) -> None:
    list(run_calibrate(settings(artifact, retain)))
    before = (artifact / GATE_FILE).read_bytes()
    near = asked_file(tmp_path / "near.jsonl", [f"  {tiny.questions(7, 12)[3].upper()} "], answer="w5")
    with pytest.raises(GateError, match=r"near.jsonl:1 asks what forget.jsonl:4 says is to be forgotten: take it"):
        list(run_calibrate(replace(settings(artifact, retain), forget=str(forget), near=str(near))))
    assert (artifact / GATE_FILE).read_bytes() == before


def test_a_gate_of_more_forget_rows_is_replaced_only_when_asked(artifact: Path, retain: Path, forget: Path) -> None:
    path = artifact / GATE_FILE
    list(run_calibrate(replace(settings(artifact, retain), forget=str(forget))))
    before = path.read_bytes()
    with pytest.raises(GateError, match=r"was made with 12 forget rows, and none are given now.*--replace"):
        list(run_calibrate(settings(artifact, retain)))
    assert path.read_bytes() == before
    path.write_bytes(before[: len(before) // 2])  # cut short: the manifest knows
    with pytest.raises(GateError, match=r"was made with 12 forget rows, and none are given now.*--replace"):
        list(run_calibrate(settings(artifact, retain)))
    path.write_bytes(before)
    (first, *_) = run_calibrate(replace(settings(artifact, retain), replace=True))
    assert first == f"{path} is made anew: the gate that was there knew 12 forget rows, this one is shown 0"
    assert EnergyGate.from_pretrained(artifact).calibration.forget_scores == ()


def test_traffic_that_looks_forgotten_is_listed_and_kept_nowhere(
    artifact: Path, retain: Path, forget: Path, tmp_path: Path
) -> None:
    given = replace(settings(artifact, retain), forget=str(forget))
    list(run_calibrate(given))
    alone = json.loads((artifact / GATE_FILE).read_text())
    prompts = [f"{question} w59" for question in [*tiny.questions(1, 20), *tiny.questions(9, 20)]]
    lines = list(run_calibrate(replace(given, traffic=str(asked_file(tmp_path / "traffic.jsonl", prompts)))))
    assert json.loads((artifact / GATE_FILE).read_text()) == alone  # nothing of it moves the gate
    (said,) = (line for line in lines if line.startswith("traffic: "))
    refused = int(said.split()[1])
    listed = [line for line in lines if "traffic.jsonl:" in line]
    assert said == f"traffic: {refused} of 40 prompts look forgotten and would be refused"
    assert len(listed) == min(refused, 20)
    assert all(json.dumps(prompt) not in (artifact / GATE_FILE).read_text() for prompt in prompts)


def test_traffic_with_answers_in_it_is_an_error(artifact: Path, retain: Path, tmp_path: Path) -> None:
    traffic = asked_file(tmp_path / "traffic.jsonl", ["w1 w2"], answer="w3")
    with pytest.raises(GateError, match=r"traffic.jsonl:1 has a column 'answer': --traffic takes prompts only"):
        list(run_calibrate(replace(settings(artifact, retain), traffic=str(traffic))))
    assert not (artifact / GATE_FILE).exists()


def test_a_gate_of_an_earlier_version_is_read_as_it_was(artifact: Path, retain: Path, forget: Path) -> None:
    """Without what this version measures beside, and with candidates that have no gap."""
    list(run_calibrate(replace(settings(artifact, retain), forget=str(forget))))
    now = EnergyGate.from_pretrained(artifact)
    content = json.loads((artifact / GATE_FILE).read_text())
    for name in ("reason", "apart", "groups", "families", "left_out"):
        content["measured"].pop(name, None)
    for candidate in content["measured"]["candidates"]:
        for name in ("gap", "gap_error"):
            candidate.pop(name, None)
    content["checksum"] = fingerprint({name: value for name, value in content.items() if name != "checksum"})
    (artifact / GATE_FILE).write_text(json.dumps(content))
    old = EnergyGate.from_pretrained(artifact)
    assert (old.threshold, old.score) == (now.threshold, now.score)
    assert (old.calibration.groups, old.calibration.families, old.calibration.left_out) == ((), (), {})
    assert now.calibration.groups
    assert any(line.startswith("* ") and "gap" not in line for line in old.describe())
