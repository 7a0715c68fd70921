"""No public way of answering runs a gate on weights that it was not calibrated on: library, server, playground, commands."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cli.command import d2, refused
from d2unlearn.errors import GateError
from d2unlearn.gate import EnergyGate
from d2unlearn.generation.guarded import GuardedModel
from d2unlearn.serving.playground import Playground, add_playground
from gate import tiny
from generation.conftest import Halves

from .conftest import Served, serving
from .test_limits import message

OTHERS = "these weights are not those the gate was calibrated on: the energy of a probe prompt differs by"


@pytest.fixture(params=["from the start", "after an answer"])
def wrong(request: pytest.FixtureRequest, split: Halves) -> GuardedModel:
    """A gate on other weights: those of another model, or of its own after a step of training."""
    if request.param == "from the start":
        return GuardedModel(tiny.model(seed=5), split.guarded.tokenizer, split.guarded.gate)
    guarded = GuardedModel(copy.deepcopy(split.guarded.model), split.guarded.tokenizer, split.guarded.gate)
    assert guarded.answer(split.prompts[:1]) == split.guarded.answer(split.prompts[:1])
    optimizer = torch.optim.AdamW(guarded.model.parameters(), lr=0.05, fused=True)
    ids = torch.tensor(split.ids[:1])
    guarded.model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    return guarded


IDS = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
LIBRARY: dict[str, Callable[[GuardedModel], Any]] = {
    "answer": lambda guarded: guarded.answer(["w1 w2"]),
    "generate": lambda guarded: guarded.generate(**IDS, max_new_tokens=2, do_sample=False),
    "generate with beams": lambda guarded: guarded.generate(**IDS, max_new_tokens=2, do_sample=False, num_beams=2),
    "stream": lambda guarded: list(guarded.stream("w1 w2")),
    "decide": lambda guarded: guarded.decide("w1 w2"),
}


@pytest.mark.parametrize("way", LIBRARY)
def test_the_library_raises(wrong: GuardedModel, way: str) -> None:
    for _ in range(2):
        with pytest.raises(GateError, match=OTHERS):
            LIBRARY[way](wrong)


REQUESTS: dict[str, Callable[[Served], Any]] = {
    "chat": lambda running: running.chat("w1 w2"),
    "chat, streamed": lambda running: running.chat("w1 w2", stream=True),
    "chat, sampled": lambda running: running.chat("w1 w2", temperature=1.0),
    "texts together": lambda running: running.send("/v1/completions", {"prompt": ["w1", "w2 w3"]}),
    "text, streamed": lambda running: running.send("/v1/completions", {"prompt": "w1", "stream": True}),
    "the playground": lambda running: running.send("/play/ask", message("w1 w2")),
}


@pytest.mark.parametrize("way", REQUESTS)
def test_the_server_and_the_playground_answer_with_the_error_s_sentence(wrong: GuardedModel, way: str) -> None:
    with serving(wrong, with_app=lambda app, service: add_playground(app, service, Playground(wrong, None), [])) as running:
        answered = REQUESTS[way](running)
        assert answered.status == 500
        assert answered.error["code"] == "gate_error"
        assert answered.error["message"].startswith(OTHERS)
        assert running.healthy()


@pytest.fixture(scope="module")
def artifact(
    tmp_path_factory: pytest.TempPathFactory, gate: EnergyGate, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "artifact"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    gate.save(folder)
    return folder


@pytest.fixture(scope="module")
def rows(artifact: Path) -> Path:
    path = artifact.parent / "rows.jsonl"
    kept = [{"question": text, "prompt": text, "answer": "w1"} for text in tiny.questions(3, 4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    return path


COMMANDS: dict[str, str] = {
    "generate": "generate --prompt w1",
    "a file of prompts": "generate --input {rows} --output {out}",
    "chat": "chat",
    "serve": "serve --port 0",
    "play": "play --port 0",
    "evaluate": "evaluate --forget {rows} --retain {rows} --output {out}",
}


def ran(way: str, artifact: Path, rows: Path, out: Path, *further: str) -> str:
    """What was said to a command that ended with exit code 2 and wrote nothing."""
    words = COMMANDS[way].format(rows=rows, out=out).split()
    found = d2(words[0], "--model", artifact, *words[1:], *further, stdin="w1 w2\n")
    assert found.out == ""
    assert not out.exists()
    return refused(found._replace(err=found.err.splitlines()[-1].removeprefix("> ")))


@pytest.mark.parametrize("way", COMMANDS)
def test_commands_end_with_the_sentence_when_the_weights_are_cast(way: str, artifact: Path, rows: Path, tmp_path: Path) -> None:
    """The files' hash is the gate's, and what runs is not what was calibrated."""
    said = ran(way, artifact, rows, tmp_path / "out", "--dtype", "bfloat16")
    assert said.startswith(OTHERS)
    assert "calibrated in float32, running in bfloat16" in said


@pytest.mark.parametrize("way", COMMANDS)
def test_commands_end_with_a_sentence_when_the_folder_holds_other_weights(
    way: str, artifact: Path, rows: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    tiny.model(seed=9).save_pretrained(other)
    for file in artifact.iterdir():
        if file.is_file() and file.suffix != ".safetensors":
            (other / file.name).write_bytes(file.read_bytes())
    assert "was calibrated on other weights than" in ran(way, other, rows, tmp_path / "out")
