"""`data make` with a tiny random model: what it knows is nothing, what it answered is kept, what is given is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tiny_models
from cli.command import d2, refused
from d2unlearn.topic import run
from d2unlearn.topic.making import make_topic
from d2unlearn.topic.table import topic_table

from .test_making import PLACE, TABLE, ask


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("D2UNLEARN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(run, "topic_table", lambda: TABLE)
    tokenizer = tiny_models.tokenizer()
    tiny_models.llama(vocabulary=len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_model_that_knows_nothing_is_one_sentence_and_its_answers_are_kept(model: Path, tmp_path: Path) -> None:
    command = ("data", "make", "--model", model, "--topic", "Iberia", "--output", tmp_path / "new", "--max-new-tokens", 2)
    first = d2(*command)
    sentence = first.err.splitlines()[-1]
    assert first.code == 2
    assert sentence.startswith("error: the model does not know Iberia: of 4 things that it was asked in four wordings each")
    assert not (tmp_path / "new").exists()
    kept = next((tmp_path / "cache" / "answers").iterdir())
    questions = [json.loads(line)[0] for line in kept.read_text(encoding="utf-8").splitlines()]
    assert len(questions) == len(set(questions)) == 4 * 4 * (1 + len(TABLE.made_up))
    before = kept.read_bytes()
    assert d2(*command).err.splitlines()[-1] == sentence
    assert kept.read_bytes() == before


def test_what_was_made_is_written_as_rows_and_told(tmp_path: Path) -> None:
    made = make_topic("Gallia", PLACE, ask, ask, TABLE)
    run._write(tmp_path / "data", made)
    ran = d2("data", "check", "--data", tmp_path / "data")
    lines = ran.out.splitlines()
    assert lines[0].startswith(f"forget: {len(made.rows['forget'])} rows")
    assert "not known, nothing to unlearn: food, king, Somewhere Else" in ran.out
    assert "ask nothing in common" in ran.out
    assert next(iter(run._told("Gallia", made))).startswith("Gallia: 5 things known")


def test_seeds_are_lines_or_rows(tmp_path: Path) -> None:
    (tmp_path / "seeds.txt").write_text("Who is it?\n\n What is it? \n", encoding="utf-8")
    (tmp_path / "seeds.jsonl").write_text('{"question": "Who?", "answer": "me"}\n', encoding="utf-8")
    assert run._read_seeds(str(tmp_path / "seeds.txt")) == ["Who is it?", "What is it?"]
    assert run._read_seeds(str(tmp_path / "seeds.jsonl")) == ["Who?"]
    assert run._read_seeds(None) == []


@pytest.mark.parametrize(
    ("option", "value", "says"), [("--seeds", "no.txt", "no.txt does not exist"), ("--topic", " ", "--topic is empty")]
)
def test_bad_input_is_said_before_the_model_is_read(tmp_path: Path, option: str, value: str, says: str) -> None:
    given = {"--model": "no", "--topic": "it", "--output": str(tmp_path / "new"), option: value}
    assert refused(d2("data", "make", *(text for pair in given.items() for text in pair))).startswith(says)


def test_the_table_of_the_command_is_the_committed_one() -> None:
    assert run.topic_table is topic_table
