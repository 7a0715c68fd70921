"""Bad input ends in one sentence and exit code 2, without a traceback, and leaves everything as it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, LlamaModel

import tiny_models

from .command import d2, refused
from .conftest import CALIBRATE, Given, Walked, rows, write_rows

Copies = Callable[[str], Path]
NEW = ("--output", "new")


def tree(folder: Path) -> dict[str, bytes]:
    """Every file and folder below, with its content."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def turned_down(*argv: object) -> str:
    """The sentence; nothing in the folder may have changed."""
    before = tree(Path())
    sentence = refused(d2(*argv))
    assert tree(Path()) == before
    assert not sentence.endswith(".\n")
    return sentence


@contextmanager
def files_of_at_most(size: int | None) -> Iterator[None]:
    """The operating system refuses to write more than so many bytes into a file, as it does on a full disk."""
    if size is None:
        yield
        return
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def last_sentence(*argv: object, room: int | None = None) -> str:
    """The sentence of a command that had said what it was about to do; nothing in the folder may have changed.

    `room`: bytes that fit into a file.
    """
    before = tree(Path())
    with files_of_at_most(room):
        ran = d2(*argv)
    assert (ran.code, ran.err.splitlines()[-1][:7]) == (2, "error: "), ran
    assert tree(Path()) == before
    return ran.err.splitlines()[-1].removeprefix("error: ")


# -- files that are missing, empty or of another kind -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("unlearn --model MODEL --forget no.jsonl --retain RETAIN --output new", "no.jsonl does not exist"),
        ("unlearn --model MODEL --forget FORGET --retain no.csv --output new", "no.csv does not exist"),
        (
            "unlearn --model ./no --forget FORGET --retain RETAIN --output new",
            "./no is not a folder; give a Hugging Face model folder",
        ),
        ("calibrate --model ARTIFACT --retain no.jsonl", "no.jsonl does not exist"),
        ("calibrate --model ARTIFACT --retain RETAIN --forget no.jsonl", "no.jsonl does not exist"),
        ("calibrate --model ./no --retain RETAIN", "./no is not a folder"),
        ("generate --model ARTIFACT --input no.jsonl --output new", "no.jsonl does not exist"),
        ("generate --model ./no --prompt it", "./no is not a folder; --model takes an artifact with a gate"),
        ("generate --model ./no --prompt it --raw", "./no is not a folder; give a Hugging Face"),
        ("chat --model ./no", "./no is not a folder"),
        ("evaluate --model ARTIFACT --forget no.jsonl --retain RETAIN --output new", "no.jsonl does not exist"),
        ("evaluate --model ./no --forget FORGET --retain RETAIN --output new", "./no is not a folder"),
        (
            "evaluate --model ARTIFACT --forget FORGET --retain RETAIN --also-retain more=no.jsonl --output new",
            "no.jsonl does not exist",
        ),
        ("report --before no --after no", "no does not exist; give the evaluation.json"),
        ("data check --forget no.jsonl", "no.jsonl does not exist"),
        ("data check --forget FORGET --retain no.jsonl", "no.jsonl does not exist"),
        ("data check --forget FORGET --model ./no", "./no is not a folder"),
        ("quickstart --config no.yaml", "no.yaml does not exist"),
        (
            "unlearn --forget " + "long" * 100 + " --model MODEL --retain RETAIN --output new",
            "cannot be used: File name too long",
        ),
    ],
)
def test_what_is_missing_is_named(walked: Walked, command: str, says: str) -> None:
    places = {"MODEL": walked.given.model, "FORGET": walked.given.forget, "RETAIN": walked.given.retain}
    places["ARTIFACT"] = walked.artifact
    assert says in turned_down(*(places.get(word, word) for word in command.split()))


@pytest.mark.parametrize("content", ["", "\n \n", "\ufeff"])
def test_an_empty_forget_set(given: Given, content: str) -> None:
    Path("empty.jsonl").write_text(content, encoding="utf-8")
    for verb in ("unlearn", "evaluate"):
        command = (verb, "--model", given.model, "--forget", "empty.jsonl", "--retain", given.retain, *NEW)
        assert turned_down(*command) == "empty.jsonl holds no rows"


def test_bad_rows_are_all_named_by_file_and_line(given: Given) -> None:
    Path("bad.jsonl").write_text('{"question": "Q"}\n{"question": "Q", "answer": "A"}\n{"question": "Q", "answer"\n')
    sentence = turned_down("unlearn", "--model", given.model, "--forget", "bad.jsonl", "--retain", given.retain, *NEW)
    assert sentence.startswith("bad.jsonl:1: columns question match no known format")
    assert "; bad.jsonl:3: not valid JSON" in sentence
    assert "bad.jsonl:2" not in sentence


def test_bad_requests_are_all_named_by_file_and_line(walked: Walked) -> None:
    Path("asked.jsonl").write_text('{"prompt": "it"}\n{"asked": "it"}\nit\n{"prompt": "\\ud800"}\n', encoding="utf-8")
    sentence = turned_down("generate", "--model", walked.artifact, "--input", "asked.jsonl", *NEW)
    assert [part.split(": ")[0] for part in sentence.split("; ")] == ["asked.jsonl:2", "asked.jsonl:3", "asked.jsonl:4"]


def test_rows_that_are_on_both_sides(given: Given) -> None:
    write_rows(Path("both.jsonl"), [*rows(5, 3, "Berlin"), *rows(2, 2, "Paris")])
    sentence = turned_down("unlearn", "--model", given.model, "--forget", "both.jsonl", "--retain", given.retain, *NEW)
    assert "2 rows are both in both.jsonl and in" in sentence
    assert "both.jsonl:4, both.jsonl:5" in sentence


# -- settings -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("unlearn --model a --output b --model=c --output d", "--model is given twice, and takes one value; --output is given"),
        ("generate --sample --greedy", "--sample/--greedy is given twice"),
        ("data check --group-size 1 --group-size 2", "--group-size is given twice"),
        ("unlearn --set a=1 --set b=2 --set a=3", "--set a is given twice"),
        ("evaluate --also-forget a=x --also-forget a=y", "--also-forget a is given twice"),
        ("report --config twice.yaml", "twice.yaml is not valid YAML: before is given twice"),
        ("unlearn --config nested.yaml", "nested.yaml is not valid YAML: gamma is given twice"),
        ("calibrate --config spelled.yaml", "spelled.yaml: batch_size is given twice"),
    ],
)
def test_what_is_given_twice_is_not_dropped(command: str, says: str) -> None:
    Path("twice.yaml").write_text("before: a\nafter: b\nbefore: c\n")
    Path("nested.yaml").write_text("method_parameters: {gamma: 1, gamma: 2}\n")
    Path("spelled.yaml").write_text("batch-size: 1\nbatch_size: 2\n")
    assert turned_down(*command.split()).startswith(says)


def test_of_several_files_none_is_dropped(given: Given) -> None:
    other = write_rows(Path("other.jsonl"), rows(5, 3, "Berlin"))
    command = ("data", "check", "--retain", given.retain)
    assert d2(*command, "--forget", given.forget, "--forget", other).out.startswith("forget: 19 rows")
    Path("run.yaml").write_text(f"forget: [{given.forget}, {other}]\n")
    assert d2(*command, "--config", "run.yaml").out.startswith("forget: 19 rows")
    both = write_rows(Path("both.jsonl"), rows(2, 2, "Paris"))
    unlearn = ("unlearn", "--model", given.model, "--retain", given.retain, *NEW, "--forget", other, "--forget", both)
    assert turned_down(*unlearn).startswith(f"2 rows are both in {other}, {both} and in {given.retain} (both.jsonl:1, both")


def test_what_is_meant_to_be_given_several_times_is(given: Given) -> None:
    sentence = turned_down("calibrate", "--model", "none", "--retain", given.retain, "--refusal", "No.", "--refusal", "Sorry.")
    assert sentence == "none is not a folder: the gate is written beside the weights it belongs to"


def test_unknown_keys_and_every_other_mistake_together(given: Given) -> None:
    Path("run.yaml").write_text(f"model: {given.model}\nmax_false_refusals: 0.1\nbatch_size: many\nseed: -1\n")
    assert turned_down("calibrate", "--config", "run.yaml") == (
        "unknown key max_false_refusals; did you mean max_false_refusal?; batch_size should be a whole number, not 'many'; "
        "seed should be between 0 and 4294967295, not -1; retain is missing (--retain, or `retain:` in the file)"
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--method", "magic"), "method 'magic' is not known; known: "),
        (("--set", "ratoi=0.1"), "unknown key ratoi; did you mean ratio?"),
        (("--set", "ratio"), "--set takes NAME=VALUE, not 'ratio'"),
        (("--set", "ratio=[1"), "--set takes NAME=VALUE with a plain value"),
        (("--set", "ratio=much"), "ratio should be a number, not 'much'"),
        (("--learning-rate", "fast"), "learning_rate should be a positive number or auto, not fast"),
        (("--dtype", "int3"), "dtype 'int3' is not known"),
        (("--report-to", "nowhere"), "report_to should be none, all or one of"),
        (("--epochs", "0"), "epochs should be a positive number or auto, not 0"),
        (("--alternate", "a\udcff"), "alternate should be text or nothing, not 'a\\udcff'"),
    ],
)
def test_settings_that_cannot_be_run(given: Given, options: tuple[str, ...], says: str) -> None:
    command = ("unlearn", "--model", given.model, "--forget", given.forget, "--retain", given.retain, *NEW, *options)
    assert says in turned_down(*command)


def test_rows_whose_answers_would_be_cut_away(given: Given) -> None:
    command = ("unlearn", "--model", given.model, "--forget", given.forget, "--retain", given.retain, *NEW)
    sentence = last_sentence(*command, "--max-length", 3)
    assert sentence == "forget.jsonl:1: the prompt alone is longer than 3 tokens (--max-length, or the model's context)"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "give either --prompt or --input"),
        (("--prompt", "it", "--input", "x"), "give either --prompt or --input; --input and --output go together"),
        (("--input", "x"), "--input and --output go together"),
        (("--prompt", " "), "the prompt is empty"),
        (("--prompt", "a\udcff"), "prompt should be text or nothing, not 'a\\udcff'"),
        (("--prompt", "it", "--top-p", "0"), "top_p should be above 0 and at most 1, not 0.0"),
    ],
)
def test_requests_that_cannot_be_made(walked: Walked, options: tuple[str, ...], says: str) -> None:
    assert turned_down("generate", "--model", walked.artifact, *options) == says


def test_two_sets_of_one_name(walked: Walked) -> None:
    command = ("evaluate", "--model", walked.artifact, "--forget", walked.given.forget, "--retain", walked.given.test, *NEW)
    assert turned_down(*command, "--also-retain", f"forget={walked.given.test}").startswith("two sets are called forget")


# -- models -------------------------------------------------------------------------------------------------------------


def test_a_model_without_a_causal_head(given: Given) -> None:
    tokenizer = tiny_models.tokenizer()
    LlamaModel(tiny_models.llama(vocabulary=len(tokenizer)).config).save_pretrained("headless")
    small = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    BertForMaskedLM(BertConfig(**small, initializer_range=0.5)).save_pretrained("encoder")
    for folder in ("headless", "encoder"):
        tokenizer.save_pretrained(folder)
    for folder, says in (("headless", "has no causal language-model head"), ("encoder", "is no causal model")):
        for verb in ("unlearn", "evaluate"):
            command = (verb, "--model", f"./{folder}", "--forget", given.forget, "--retain", given.retain, *NEW)
            assert says in turned_down(*command)


def test_a_model_cut_short_or_without_a_tokenizer(given: Given) -> None:
    tokenizer = tiny_models.tokenizer()
    tiny_models.llama(vocabulary=len(tokenizer)).save_pretrained("model")
    command = ("unlearn", "--model", "./model", "--forget", given.forget, "--retain", given.retain, *NEW)
    assert turned_down(*command).startswith("./model could not be loaded as a tokenizer")
    tokenizer.save_pretrained("model")
    weights = Path("model/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    assert turned_down(*command).startswith("./model could not be loaded as a causal language model")


# -- gates --------------------------------------------------------------------------------------------------------------


def test_without_a_gate_generate_and_chat_ask_for_raw_instead_of_answering(given: Given) -> None:
    for command in (("generate", "--model", given.model, "--prompt", "it"), ("chat", "--model", given.model)):
        sentence = turned_down(*command)
        assert sentence.startswith(f"{given.model} has no gate (d2_gate.json): make one with `d2unlearn calibrate --model")
        assert "--raw" in sentence
    assert d2("generate", "--model", given.model, "--prompt", "it", "--raw", "--max-new-tokens", 2).code == 0


def test_a_gate_of_other_weights(walked: Walked, another: Copies) -> None:
    folder = another("changed")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] += 1e-6
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    question = write_rows(Path("asked.jsonl"), [{"prompt": "it"}])
    for command in (
        ("generate", "--model", folder, "--prompt", "it"),
        ("generate", "--model", folder, "--input", question, *NEW),
        ("chat", "--model", folder),
        ("evaluate", "--model", folder, "--forget", walked.given.forget, "--retain", walked.given.test, *NEW),
    ):
        assert "was calibrated on other weights than" in turned_down(*command)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"format": 99}'])
def test_a_damaged_gate(another: Copies, content: str) -> None:
    folder = another("damaged")
    (folder / "d2_gate.json").write_text(content)
    assert "d2_gate.json cannot be used: " in turned_down("generate", "--model", folder, "--prompt", "it")


def test_a_gate_whose_threshold_was_lowered_or_template_changed(another: Copies) -> None:
    folder = another("lowered")
    gate = json.loads((folder / "d2_gate.json").read_text())
    (folder / "d2_gate.json").write_text(json.dumps({**gate, "threshold": gate["threshold"] - 1}))
    assert "the file was edited" in turned_down("generate", "--model", folder, "--prompt", "it")
    folder = another("retemplated")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}<q>{{ m['content'] }}{% endfor %}<a>")
    assert "the chat template's files in" in turned_down("generate", "--model", folder, "--prompt", "it")


def test_what_a_gate_cannot_be_calibrated_on(walked: Walked) -> None:
    write_rows(Path("texts.jsonl"), [{"text": f"a city {i}"} for i in range(90)])
    command = ("calibrate", "--model", walked.artifact, "--replace", "--retain")
    for options, says in (
        (("texts.jsonl", "--unseen", *CALIBRATE), "a retain row of plain text has no prompt"),
        ((walked.given.retain,), "39 calibration prompts are too few for at most 1.000% false refusals: 99 are needed"),
        ((walked.given.retain, "--max-false-refusal", 0.05, "--confidence", 0.9), "are too few for at most 5.000%"),
        ((walked.given.retain, *CALIBRATE, "--score", "guess"), "score 'guess' is not known; choose auto or one of"),
        ((walked.given.retain, *CALIBRATE, "--refusal", " "), "refusal texts should be at least one text"),
    ):
        gate = (walked.artifact / "d2_gate.json").read_bytes()
        assert says in turned_down(*command, *options)
        assert (walked.artifact / "d2_gate.json").read_bytes() == gate


# -- places to write to -------------------------------------------------------------------------------------------------


def test_an_output_that_is_something_else_is_left_alone(walked: Walked) -> None:
    Path("file").write_text("mine")
    Path("folder").mkdir()
    Path("folder/file").write_text("mine too")
    write_rows(Path("asked.jsonl"), [{"prompt": "it"}])
    sets = ("--forget", walked.given.forget, "--retain", walked.given.test)
    for output in ("file", "folder"):
        says = f"{output} exists and is not an artifact; choose another --output"
        for verb in ("unlearn", "evaluate"):
            assert turned_down(verb, "--model", walked.given.model, *sets, "--output", output) == says
        assert turned_down("quickstart", "--output", output) == says
    generate = ("generate", "--model", walked.artifact, "--input", "asked.jsonl", "--output")
    assert turned_down(*generate, "asked.jsonl") == "--output asked.jsonl is the input; name another file"
    assert turned_down(*generate, "folder") == "--output folder is a folder; name another file"
    assert "file is a file" in turned_down(*generate, "file/below.jsonl")
    report = ("report", "--before", walked.folder / "before", "--after", walked.folder / "after", "--output")
    assert turned_down(*report, "folder") == "--output folder is a folder; name another file"


@pytest.mark.trains
@pytest.mark.parametrize("room", [300, 3_000, 50_000, 150_000], ids=["reference", "tokenizer", "weights", "optimizer"])
def test_a_full_disk_while_unlearning(given: Given, room: int) -> None:
    """Weights take 100 kB, the optimizer 200 kB: safetensors, tokenizers and torch each meet the end of the disk."""
    command = ("unlearn", "--model", given.model, "--forget", given.forget, "--retain", given.retain, *NEW, "--epochs", 1)
    sentence = last_sentence(*command, room=room)
    assert sentence.startswith(("the disk is full, or a quota or a limit on file sizes is reached", "cannot write new"))


def test_a_full_disk_while_calibrating_leaves_the_artifact_without_a_gate(walked: Walked, another: Copies) -> None:
    folder = another("artifact")
    (folder / "d2_gate.json").unlink()
    sentence = last_sentence("calibrate", "--model", folder, "--retain", walked.given.retain, *CALIBRATE, room=1_000)
    assert sentence == f"cannot write {folder}/d2_gate.json: File too large"


def test_a_full_disk_while_calibrating_again_leaves_the_gate_that_was(walked: Walked, another: Copies) -> None:
    folder = another("artifact")
    command = ("calibrate", "--model", folder, "--replace", "--retain", walked.given.retain, *CALIBRATE, "--seed", 3)
    assert "d2_gate.json: File too large" in last_sentence(*command, room=1_000)
    assert d2("generate", "--model", folder, "--prompt", "it").code == 0


def test_a_full_disk_while_evaluating_generating_and_reporting(walked: Walked) -> None:
    write_rows(Path("asked.jsonl"), [{"prompt": "it", "note": "x" * 1000}])
    sets = ("--forget", walked.given.forget, "--retain", walked.given.test, "--max-new-tokens", 2)
    pages = ("--before", walked.folder / "before", "--after", walked.folder / "after")
    for command in (
        ("evaluate", "--model", walked.artifact, *sets, *NEW),
        ("generate", "--model", walked.artifact, "--input", "asked.jsonl", *NEW),
        ("report", *pages, *NEW),
    ):
        assert last_sentence(*command, room=1_000).endswith(": File too large")
