"""The whole way by the command line on a tiny model: unlearn, calibrate, generate, evaluate, report; and all of it twice."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from d2unlearn.data.holdout import hold_out
from d2unlearn.data.records import content_hash, read_examples
from d2unlearn.gate import EnergyGate
from d2unlearn.generation.guarded import GuardedModel
from d2unlearn.models import weights_hash
from d2unlearn.runtime import hash_file, read_json
from d2unlearn.schema import Evaluation
from d2unlearn.serialization import read_evaluation

from .command import Ran, d2, refused
from .conftest import QUESTIONS, Walked, commands_of, write_rows


def json_lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def everything(folder: Path) -> dict[str, tuple[str, int]]:
    """Every file with its hash and the time it was last written."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): (hash_file(path), path.stat().st_mtime_ns) for path in files}


@pytest.fixture(scope="module")
def before(walked: Walked) -> Evaluation:
    return read_evaluation(walked.folder / "before" / "evaluation.json")


@pytest.fixture(scope="module")
def after(walked: Walked) -> Evaluation:
    return read_evaluation(walked.folder / "after" / "evaluation.json")


def test_every_command_ends_well_and_prints_where_its_result_is(walked: Walked) -> None:
    assert {name: ran.code for name, ran in walked.ran.items()} == dict.fromkeys(walked.ran, 0)
    results = {
        "unlearn": walked.artifact,
        "calibrate": walked.artifact / "d2_gate.json",
        "before": walked.folder / "before" / "evaluation.json",
        "after": walked.folder / "after" / "evaluation.json",
        "report": walked.folder / "report.html",
    }
    assert {name: walked.ran[name].out.splitlines()[-1] for name in results} == {n: str(p) for n, p in results.items()}
    assert walked.ran["generate"].out == f"{walked.folder / 'answers.jsonl'}: 3 answers, 1 refused\n"


def test_nothing_half_made_is_left_beside_the_results(walked: Walked) -> None:
    assert sorted(path.name for path in walked.folder.iterdir()) == [
        *("after", "answers.jsonl", "answers.jsonl.manifest.json", "artifact", "before", "questions.jsonl"),
        *("report.html", "report.html.manifest.json", "unlearn.yaml"),
    ]
    assert sorted(path.name for path in walked.given.model.parent.iterdir()) == [
        *("forget.jsonl", "model", "retain.jsonl", "test.jsonl")
    ]


def test_the_command_line_wins_over_the_file_and_the_manifest_says_what_was_run(walked: Walked) -> None:
    manifest = read_json(walked.artifact / "d2_manifest.json")
    settings = manifest["settings"]
    assert (settings["epochs"], settings["batch_size"], settings["learning_rate"]) == (8.0, 4, 0.01)
    assert manifest["method"] | {"gamma": 0.5} == manifest["method"]
    assert manifest["data"]["forget"]["rows"] == 16
    hashes = {"original": weights_hash(settings["model"]), "artifact": weights_hash(walked.artifact)}
    assert manifest["weights"] == hashes
    held_out = hold_out(read_examples(walked.given.retain), seed=0).held_out
    assert manifest["held_out"] == [content_hash(row) for row in held_out]
    assert len(held_out) == 60


def test_unlearn_says_what_it_does_and_shows_what_a_person_steers_by(walked: Walked) -> None:
    first, legend, near, *looks, kept, following = walked.ran["unlearn"].err.splitlines()
    epochs = [line for line in looks if line.startswith("epoch")]
    assert "16 rows to forget, 60 to keep, 60 retained rows set aside" in first
    assert "learning rate 0.01 (as given)" in first
    assert "energy should rise / stay" in legend
    assert near.startswith("neighbours that have to stay: 20 rows, of the retained rows set aside those nearest")
    assert "The model itself knows the answers of 0 of 21 rows looked at that should stay" in near
    assert sum("| share of level shift " in line for line in looks) == 8
    assert kept.startswith("kept: epoch ")
    assert following.startswith(f"next: d2unlearn calibrate --model {walked.artifact} ")
    assert [line.split(":")[0].split(",")[0] for line in epochs] == [f"epoch {n} of 8" for n in range(1, 9)]
    for word in ("energy forget", "active hinges", "retain NLL", "AUROC"):
        assert all(word in line for line in epochs)


def test_calibration_uses_the_rows_set_aside_and_says_what_it_promises(walked: Walked) -> None:
    gate = EnergyGate.from_pretrained(walked.artifact)
    lines = walked.ran["calibrate"].out.splitlines()
    assert lines[0] == f"60 rows of {walked.given.retain} that unlearn set aside"
    assert (gate.max_false_refusal, gate.n_calibration, gate.max_new_tokens) == (0.05, 39, 6)
    assert gate.refusal_texts == ("he was",)
    assert f"guarantee: {gate.guarantee}" in lines
    assert sum(score > gate.threshold for score in gate.calibration.calibration_scores) <= 1  # rank 38 of 39
    assert gate.weights_hash == weights_hash(walked.artifact)
    assert "calibration" in read_json(walked.artifact / "d2_manifest.json")


def test_generate_keeps_a_row_s_fields_and_adds_its_own(walked: Walked) -> None:
    gate = EnergyGate.from_pretrained(walked.artifact)
    answers = json_lines(walked.folder / "answers.jsonl")
    added = ("text", "refused", "energy", "score", "threshold")
    for row, given in zip(answers, QUESTIONS, strict=True):
        assert set(row) == {*given, *added}
        assert {key: row[key] for key in given if key not in added} == {k: v for k, v in given.items() if k not in added}
        assert row["threshold"] == gate.threshold
    assert [row["refused"] for row in answers] == [True, False, False]
    assert answers[0]["text"] == "he was"
    assert "é" in (walked.folder / "answers.jsonl").read_text(encoding="utf-8")


def test_generate_s_answers_are_those_of_the_library(walked: Walked) -> None:
    guarded = GuardedModel.from_pretrained(walked.artifact)
    expected = guarded.answer([str(row["prompt"]) for row in QUESTIONS])
    for row, answer in zip(json_lines(walked.folder / "answers.jsonl"), expected, strict=True):
        assert (row["text"], row["refused"]) == (answer.text, answer.refused)
        assert row["energy"] == pytest.approx(answer.energy, abs=1e-4)


def energies(evaluation: Evaluation, name: str) -> np.ndarray:
    (found,) = (each for each in evaluation.sets if each.name == name)
    return np.array([example.answer_energy for example in found.examples])


def test_unlearning_raises_the_forgotten_energy_above_the_retained(before: Evaluation, after: Evaluation) -> None:
    risen = {name: energies(after, name) - energies(before, name) for name in ("forget", "retain")}
    assert risen["forget"].mean() > risen["retain"].mean() + 0.3
    assert energies(after, "forget").mean() > energies(after, "retain").mean() + 0.3
    auroc = {e.label: next(m for m in e.separation if m.name.startswith("auroc_answer_energy")) for e in (before, after)}
    assert auroc["model"].value < 0.75
    assert auroc["artifact"].value > 0.95


def test_guarded_metrics_are_there_where_there_is_a_gate(before: Evaluation, after: Evaluation) -> None:
    names = {e.label: {m.name for each in e.sets for m in each.metrics} for e in (before, after)}
    raw = {
        *("extraction_strength", "exact_memorization", "answer_probability"),
        *("exact_memorization_without_end", "mean_logit", "centred_energy", "entropy"),
        *("rouge_l_recall", "leak_rate", "token_entropy"),
    }
    guarded = {"guarded_rouge_l_recall", "guarded_leak_rate", "guarded_refusal_rate"}
    assert raw <= names["model"]
    assert not guarded & names["model"]
    assert raw | guarded <= names["artifact"]
    assert (before.threshold, before.score_name, before.max_false_refusal) == (None, None, None)
    assert after.max_false_refusal == 0.05


def test_every_decision_in_the_result_follows_from_its_score(after: Evaluation) -> None:
    assert after.threshold is not None
    for each in after.sets:
        refusals = [bool(example.refused) for example in each.examples]
        for example in each.examples:
            assert example.gate_score is not None
            assert example.refused == (example.gate_score > after.threshold)
            assert example.guarded_answer == ("he was" if example.refused else example.raw_answer)
        (rate,) = (metric for metric in each.metrics if metric.name == "guarded_refusal_rate")
        assert (rate.value, rate.n, rate.better) == (
            pytest.approx(np.mean(refusals)),
            len(refusals),
            "higher" if each.kind == "forget" else "lower",
        )
        assert np.mean(refusals) > 0.5 if each.kind == "forget" else np.mean(refusals) < 0.2


def test_what_could_not_be_scored_is_counted_and_printed(walked: Walked, after: Evaluation) -> None:
    for each in after.sets:
        for metric in each.metrics:
            if metric.name not in each.examples[0].scores:
                continue
            scores = [example.scores[metric.name] for example in each.examples]
            assert metric.unscored == sum(map(math.isnan, scores))
            assert metric.n == len(scores) - metric.unscored
            if metric.n:
                assert metric.value == pytest.approx(np.nanmean(scores))
    (entropy,) = (m for m in after.sets[0].metrics if m.name == "token_entropy")
    assert entropy.unscored >= 1  # answers of one word
    assert f"({entropy.unscored} not scored)" in walked.ran["after"].out


def test_the_report_is_one_page_with_questions_side_by_side(walked: Walked) -> None:
    page = (walked.folder / "report.html").read_text(encoding="utf-8")
    assert "<html" in page
    assert 'src="http' not in page
    assert "What Berlin" in page
    note = read_json(walked.folder / "report.html.manifest.json")
    assert note["after"]["sha256"] == hash_file(walked.folder / "after" / "evaluation.json")


def test_every_command_writes_a_manifest(walked: Walked) -> None:
    places = {
        "unlearn": walked.artifact / "d2_manifest.json",
        "evaluate": walked.folder / "after" / "d2_manifest.json",
        "generate": walked.folder / "answers.jsonl.manifest.json",
        "report": walked.folder / "report.html.manifest.json",
    }
    assert {name: read_json(path)["command"] for name, path in places.items()} == {name: name for name in places}


@pytest.mark.parametrize("name", ["unlearn", "calibrate", "generate", "before", "after"])
def test_the_second_time_a_command_says_that_it_is_done_and_touches_nothing(walked: Walked, name: str) -> None:
    written = everything(walked.folder)
    ran = d2(*commands_of(walked.folder, walked.given, walked.artifact)[name])
    assert ran.code == 0
    assert "is done: same inputs, same settings" in ran.out + ran.err
    assert everything(walked.folder) == written


def test_the_second_report_is_the_same_page(walked: Walked) -> None:
    content = {name: sha for name, (sha, _) in everything(walked.folder).items()}
    assert d2(*commands_of(walked.folder, walked.given, walked.artifact)["report"]).code == 0
    assert {name: sha for name, (sha, _) in everything(walked.folder).items()} == content


def test_an_evaluation_behind_another_gate_than_the_artifact_s_is_not_reported_with_it(walked: Walked, tmp_path: Path) -> None:
    result = read_json(walked.folder / "after" / "evaluation.json")
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**result, "threshold": result["threshold"] + 0.5}))
    said = refused(
        d2(
            "report",
            "--before",
            walked.folder / "before",
            "--after",
            other,
            "--artifact",
            walked.artifact,
            "--output",
            tmp_path / "r",
        )
    )
    assert "was evaluated behind another gate" in said
    assert "run `d2unlearn evaluate` on it again" in said
    assert not (tmp_path / "r").exists()


def test_other_settings_do_not_overwrite_a_result(walked: Walked) -> None:
    written = everything(walked.folder)
    for name in ("unlearn", "after"):
        command = commands_of(walked.folder, walked.given, walked.artifact)[name]
        assert "holds the result of other inputs or settings (seed: 0 there, 5 here); give --force" in refused(
            d2(*command, "--seed", 5)
        )
    assert everything(walked.folder) == written


def test_one_prompt_is_answered_on_the_standard_output_alone(walked: Walked) -> None:
    ran = d2("generate", "--model", walked.artifact, "--prompt", QUESTIONS[0]["prompt"])
    assert ran == (0, "he was\n", "")
    shown = d2("generate", "--model", walked.artifact, "--prompt", QUESTIONS[1]["prompt"], "--show-energy")
    answers = json_lines(walked.folder / "answers.jsonl")
    assert shown.out == f"{answers[1]['text']}\n"
    assert shown.err.startswith("answered: score ")
    assert shown.err.endswith(f"prompt energy {answers[1]['energy']:.2f} nats\n")


def test_raw_answers_say_that_they_are_raw(walked: Walked, tmp_path: Path) -> None:
    questions = walked.folder / "questions.jsonl"
    ran = d2("generate", "--model", walked.artifact, "--input", questions, "--output", tmp_path / "raw.jsonl", "--raw")
    assert ran.out == f"{tmp_path / 'raw.jsonl'}: 3 answers, 0 refused (raw: nothing was guarded)\n"
    rows = json_lines(tmp_path / "raw.jsonl")
    assert [(row["refused"], row["threshold"]) for row in rows] == [(False, None)] * 3
    assert rows[0]["text"] != "he was"
    assert [row["energy"] for row in rows] == pytest.approx(
        [row["energy"] for row in json_lines(walked.folder / "answers.jsonl")], abs=1e-4
    )
    shown = d2("generate", "--model", walked.artifact, "--prompt", "it", "--raw", "--show-energy")
    assert shown.err.endswith("nats; raw: no gate decided\n")


def test_answers_of_other_settings_are_replaced_when_asked_for(walked: Walked, tmp_path: Path) -> None:
    command = ("generate", "--model", walked.artifact, "--input", walked.folder / "questions.jsonl", "--output")
    d2(*command, tmp_path / "a.jsonl", "--max-new-tokens", 1, "--raw")
    short = [str(row["text"]) for row in json_lines(tmp_path / "a.jsonl")]
    longer = (*command, tmp_path / "a.jsonl", "--max-new-tokens", 6, "--raw")
    says = f"{tmp_path / 'a.jsonl'} is there, and this command did not make it of these inputs; give --force to replace it"
    assert refused(d2(*longer)).startswith(says)
    assert [str(row["text"]) for row in json_lines(tmp_path / "a.jsonl")] == short
    assert d2(*longer, "--force").code == 0
    assert "is done" in d2(*longer).out
    long = [str(row["text"]) for row in json_lines(tmp_path / "a.jsonl")]
    assert [text[: len(start)] for text, start in zip(long, short, strict=True)] == short
    assert long != short


def test_answers_that_were_changed_since_are_not_done_and_not_replaced(walked: Walked, tmp_path: Path) -> None:
    command = ("generate", "--model", walked.artifact, "--input", walked.folder / "questions.jsonl", "--raw", "--output")
    answers = tmp_path / "a.jsonl"
    assert d2(*command, answers).code == 0
    answers.write_text("my corrections")
    assert "did not make it of these inputs" in refused(d2(*command, answers))
    assert answers.read_text() == "my corrections"


def test_answers_go_to_the_end_of_a_link_and_never_in_the_place_of_a_pipe(walked: Walked, tmp_path: Path) -> None:
    command = ("generate", "--model", walked.artifact, "--input", walked.folder / "questions.jsonl", "--raw", "--output")
    (tmp_path / "disk").mkdir()
    (tmp_path / "a.jsonl").symlink_to("disk/answers.jsonl")
    assert d2(*command, tmp_path / "a.jsonl").code == 0
    assert (tmp_path / "a.jsonl").readlink() == Path("disk/answers.jsonl")
    assert len(json_lines(tmp_path / "disk" / "answers.jsonl")) == len(QUESTIONS)
    assert "is done" in d2(*command, tmp_path / "a.jsonl").out
    os.mkfifo(tmp_path / "pipe")
    assert refused(d2(*command, tmp_path / "pipe")).startswith(f"{tmp_path / 'pipe'} is not a regular file or folder")
    assert (tmp_path / "pipe").is_fifo()


def test_a_report_replaces_its_own_page_and_nobody_else_s(walked: Walked, tmp_path: Path) -> None:
    def report(before: str, *further: object) -> Ran:
        sides = ("--before", walked.folder / before, "--after", walked.folder / "after")
        return d2("report", *sides, "--output", tmp_path / "page.html", *further)

    page = tmp_path / "page.html"
    page.write_text("<p>mine</p>")
    assert "did not make it of these inputs; give --force" in refused(report("before"))
    assert page.read_text() == "<p>mine</p>"
    assert report("before", "--force").code == 0
    first = page.read_text(encoding="utf-8")
    assert report("before", "--artifact", walked.artifact).code == 0  # of the same records
    assert page.read_text(encoding="utf-8") != first
    assert "did not make it of these inputs" in refused(report("after"))
    (tmp_path / "page.html.manifest.json").unlink()
    assert report("before").code == 0
    assert page.read_text(encoding="utf-8") == first
    before = walked.folder / "before" / "evaluation.json"
    assert "is the input" in refused(d2("report", "--before", before, "--after", before, "--output", before, "--force"))


@pytest.mark.filterwarnings("default::d2unlearn.generation.guarded.GateWarning")
def test_sampled_answers_come_from_the_seed_with_a_word_on_the_guarantee(walked: Walked) -> None:
    command = ("generate", "--model", walked.artifact, "--prompt", QUESTIONS[1]["prompt"], "--sample", "--temperature", 3)
    ran = d2(*command, "--seed", 1)
    assert ran.err.startswith("warning: sampling with a gate that was calibrated on greedy answers")
    assert len(ran.err.splitlines()) == 1
    assert d2(*command, "--seed", 1).out == ran.out
    assert len({d2(*command, "--seed", seed).out for seed in (1, 2, 3)}) > 1


def test_longer_answers_than_the_gate_was_calibrated_on_are_noted(walked: Walked) -> None:
    ran = d2("generate", "--model", walked.artifact, "--prompt", "it", "--max-new-tokens", 9)
    assert ran.err.startswith("note: the gate was calibrated on answers of up to 6 tokens")


def test_chat_answers_line_by_line_and_shows_the_decision_on_request(walked: Walked) -> None:
    asked = [str(row["prompt"]) for row in QUESTIONS[:2]]
    texts = [row["text"] for row in json_lines(walked.folder / "answers.jsonl")]
    ran = d2("chat", "--model", walked.artifact, stdin="\n".join([asked[0], "/energy", asked[0], asked[1], "", "never asked"]))
    assert (ran.code, ran.out.splitlines()) == (0, [texts[0], texts[0], texts[1]])
    shown = [line for line in ran.err.split("\n") if "score" in line]
    assert [line.lstrip("> ").split(":")[0] for line in shown] == ["refused", "answered"]


def test_chat_ends_with_its_input_and_takes_any_bytes(walked: Walked) -> None:
    ran = d2("chat", "--model", walked.artifact, "--show-energy", stdin=b"\xff\xfe?\nit")
    assert (ran.code, len(ran.out.splitlines())) == (0, 2)
    assert d2("chat", "--model", walked.artifact).out == ""


def test_chat_raw_says_so(walked: Walked) -> None:
    ran = d2("chat", "--model", walked.given.model, "--raw", "--show-energy", "--max-new-tokens", 3, stdin="it\n")
    assert "raw: no gate decided" in ran.err


def test_data_check_says_what_it_read_and_shows_a_row_with_its_answer_marked(walked: Walked, tmp_path: Path) -> None:
    ask = {"question": "What is it?", "answer": "Paris", "group": "a"}
    forget = write_rows(tmp_path / "forget.jsonl", [ask, {"text": "in a city"}, ask, {**ask, "answer": "Berlin", "group": "b"}])
    retain = write_rows(tmp_path / "retain.jsonl", [{"prompt": "what is IT?", "completion": "a city"}])
    ran = d2("data", "check", "--forget", forget, "--retain", retain, "--model", walked.given.model)
    assert ran == (
        0,
        "forget: 4 rows, 3 with a prompt, 2 groups, longest 9 tokens, 10 answer tokens\n"
        "  forget.jsonl:1: <bos><q>What is it?<a>⟦Paris<eos>⟧\n"
        "  duplicate: forget.jsonl:1 and forget.jsonl:3\n"
        "retain: 1 rows, 1 with a prompt, 0 groups, longest 15 tokens, 3 answer tokens\n"
        "  retain.jsonl:1: <bos><q>what is IT?<a>⟦a city<eos>⟧\n"
        "  no row twice\n"
        "  forget and retain ask the same: forget.jsonl:1 and retain.jsonl:1\n"
        "  forget and retain ask the same: forget.jsonl:3 and retain.jsonl:1\n"
        "  forget and retain ask the same: forget.jsonl:4 and retain.jsonl:1\n"
        "unlearn: 4 rows to forget, 1 to retain; 0 are set aside\n"
        "calibrate: needs --retain, rows with a prompt that training leaves aside\n"
        "evaluate: needs retained rows that training never sees, in a file of their own\n",
        "",
    )


def test_data_check_needs_neither_a_model_nor_rows_to_keep_and_lists_no_more_than_five(tmp_path: Path) -> None:
    forget = write_rows(tmp_path / "forget.jsonl", [{"question": "Q", "answer": "A"}] * 8)
    ran = d2("data", "check", "--forget", forget, "--group-size", 4)
    assert ran.out.splitlines() == [
        "forget: 8 rows, 8 with a prompt, 2 groups",
        *(f"  duplicate: forget.jsonl:1 and forget.jsonl:{n}" for n in range(2, 7)),
        "  and 2 more",
        "unlearn: needs --retain too",
        "calibrate: needs --retain, rows with a prompt that training leaves aside",
        "evaluate: needs retained rows that training never sees, in a file of their own",
    ]


def test_data_check_reads_a_whole_folder_says_what_is_not_known_and_what_each_command_has(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name, count in {"forget": 3, "paraphrased": 2, "retain": 400, "retain_test": 5}.items():
        write_rows(
            folder / f"{name}.jsonl", [{"question": f"{name} {n}?", "answer": "it", "group": f"g{n}"} for n in range(count)]
        )
    write_rows(folder / "unknown.jsonl", [{"fact": f"fact {n}"} for n in range(7)])
    own = write_rows(tmp_path / "own.jsonl", [{"question": "retain 7?", "answer": "a city"}])
    ran = d2("data", "check", "--data", folder, "--also-retain", f"own={own}")
    assert ran.out.splitlines()[1::2][:5] == ["  no row twice"] * 5
    assert ran.out.splitlines()[:10:2] == [
        "forget: 3 rows, 3 with a prompt, 3 groups",
        "paraphrased: 2 rows, 2 with a prompt, 2 groups",
        "retain: 400 rows, 400 with a prompt, 400 groups",
        "retain_test: 5 rows, 5 with a prompt, 5 groups",
        "own: 1 rows, 1 with a prompt, 0 groups",
    ]
    assert ran.out.splitlines()[10:] == [
        "  retain and own ask the same: retain.jsonl:8 and own.jsonl:1",
        f"not known, nothing to unlearn: fact 0, fact 1, fact 2, fact 3, fact 4, and 2 more ({folder / 'unknown.jsonl'})",
        "unlearn: 3 rows to forget, 200 to retain; 200 are set aside",
        "calibrate: 130 prompts that were set aside set the threshold, for --max-false-refusal 0.0076 or more",
        "evaluate: never trained on: retain_test, own",
    ]


def test_data_check_takes_any_one_file_and_says_what_is_missing(tmp_path: Path) -> None:
    retain = write_rows(tmp_path / "retain.jsonl", [{"question": f"Q{n}", "answer": "A"} for n in range(200)])
    assert d2("data", "check", "--retain", retain).out.splitlines()[2:] == [
        "unlearn: needs --forget too",
        "calibrate: 65 prompts that were set aside set the threshold, for --max-false-refusal 0.015 or more; "
        "the default of 0.01 needs 99",
        "evaluate: needs --forget, and retained rows that training never sees",
    ]
    (tmp_path / "empty").mkdir()
    assert refused(d2("data", "check", "--data", tmp_path / "empty")).startswith(
        f"{tmp_path / 'empty'} holds none of the files"
    )
    assert refused(d2("data", "check")) == "there is nothing to look at: name a set with --forget, --retain or --data"


def test_a_model_that_unlearn_did_not_make_can_be_calibrated_too(walked: Walked, tmp_path: Path) -> None:
    import shutil

    folder = shutil.copytree(walked.given.model, tmp_path / "model")
    command = ("calibrate", "--model", folder, "--retain", walked.given.retain, "--max-new-tokens", 2)
    assert refused(d2(*command, "--max-false-refusal", 0.1)).startswith(
        f"{folder} has no manifest of unlearn that says which rows it set aside: nothing shows"
    )
    assert not (folder / "d2_gate.json").exists()
    command = (*command, "--unseen", "--max-false-refusal")
    ran = d2(*command, 0.1)
    assert ran.out.startswith(f"all 120 rows of {walked.given.retain}, which you vouch for as unseen (--unseen)")
    assert "in float32; that none of these prompts was trained on is the user's word (--unseen): nothing shows it" in ran.out
    assert EnergyGate.from_pretrained(folder).n_calibration == 78
    assert "is done" in d2(*command, 0.1).out
    assert "is done" not in d2(*command, 0.2).out
    assert EnergyGate.from_pretrained(folder).max_false_refusal == 0.2
