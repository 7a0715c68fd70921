"""What the command line does, from Python: a function a command, which returns what the command prints or where it wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

import d2unlearn.serving.playground
import d2unlearn.serving.run
from d2unlearn import commands
from d2unlearn.cli.main import app
from d2unlearn.commands import (
    CheckSettings,
    GenerateSettings,
    PlaySettings,
    ServeSettings,
    check_data,
    generate,
    play,
    serve,
)
from d2unlearn.errors import ConfigError
from d2unlearn.gate import EnergyGate
from d2unlearn.generation.guarded import GuardedModel
from gate import tiny
from gate.conftest import gate, model, tokenizer

from .command import d2

__all__ = ["gate", "model", "tokenizer"]


def test_each_command_has_a_function_and_each_function_settings() -> None:
    verbs = {str(verb.name or verb.callback.__name__) for verb in app.registered_commands if verb.callback is not None}
    functions = {name for name in commands.__all__ if name[0].islower()}
    assert functions == (verbs - {"chat"}) | {"make_data", "check_data"}


def test_answers_from_python_are_those_of_the_command(
    gate: EnergyGate, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    folder, rows = tmp_path / "artifact", tmp_path / "rows.jsonl"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    gate.save(folder)
    prompts = tiny.questions(9, 2)
    expected = [answer.text for answer in GuardedModel.from_pretrained(folder).answer(prompts)]
    told: list[str] = []
    assert generate(GenerateSettings(str(folder), prompts[0]), told.append) == expected[0]
    assert d2("generate", "--model", folder, "--prompt", prompts[0]).out.splitlines() == [expected[0]]
    assert told == []
    rows.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    made = generate(GenerateSettings(str(folder), input=str(rows), output=str(tmp_path / "out.jsonl")), told.append)
    assert [json.loads(line)["text"] for line in Path(made).read_text().splitlines()] == expected
    assert [line.split(": ")[1].split(",")[0] for line in told] == ["2 answers"]
    with pytest.raises(ConfigError, match="give either --prompt or --input; the prompt"):
        generate(GenerateSettings(str(folder), "", input=str(rows), output="o.jsonl"))


def test_data_sets_looked_at_from_python_are_summed_up_as_the_command_prints(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"question": q, "answer": "yes", "group": q}) + "\n" for q in ("Who?", "What?", "who? "))
    )
    told: list[str] = []
    (found,) = check_data(CheckSettings(str(rows)), told.append).values()
    assert (found.rows, found.with_prompt, found.duplicates) == (3, 3, (("rows.jsonl:1", "rows.jsonl:3"),))
    assert (found.longest, found.answer_tokens) == (None, None)
    assert d2("data", "check", "--forget", rows).out.splitlines() == told


def test_servers_are_started_with_settings_that_were_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setattr(d2unlearn.serving.run, "run_serve", started.append)
    monkeypatch.setattr(d2unlearn.serving.playground, "run_play", started.append)
    serve(ServeSettings("artifact", port=0))
    play(PlaySettings("artifact", port=0))
    assert started == [ServeSettings("artifact", port=0), PlaySettings("artifact", port=0)]
    with pytest.raises(ConfigError, match="port should be"):
        serve(ServeSettings("artifact", port=-1))
