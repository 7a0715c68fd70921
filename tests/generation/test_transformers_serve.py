"""`transformers serve` on an artifact: guarded with its code, raw without, and turned down with continuous batching."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from d2unlearn.gate import EnergyGate
from d2unlearn.gate.score import FirstTokens
from gate import tiny

from .conftest import Halves, halves

pytest.importorskip("openai", reason="transformers serve needs openai, fastapi and uvicorn")

from starlette.testclient import TestClient

CHAT = "<bos>{% for m in messages %}Question: {{ m['content'] }} Answer: {% endfor %}"


@pytest.fixture(scope="module")
def split() -> Halves:
    tokenizer: PreTrainedTokenizerFast = tiny.tokenizer()
    tokenizer.chat_template = CHAT
    gate = EnergyGate.calibrate(
        tiny.model(), tokenizer, tiny.examples(1, 30), max_false_refusal=0.2, max_new_tokens=8, refusal_texts=["sorry"]
    )
    return halves(gate, tiny.model(), tokenizer, FirstTokens(1), n=4, limit=8)


@pytest.fixture(scope="module")
def folder(split: Halves, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("served") / "artifact"
    split.guarded.model.save_pretrained(made)
    split.guarded.tokenizer.save_pretrained(made)
    assert split.guarded.gate is not None
    split.guarded.gate.save(made)
    return made


@contextmanager
def served(folder: Path, modules: Path, **options: Any) -> Iterator[TestClient]:
    """The command's own application, asked without a socket."""
    from transformers.cli.serve import Serve

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(modules))
        patch.syspath_prepend(str(modules))
        patch.setattr(Serve, "start_server", lambda self: None)
        server = Serve(force_model=str(folder), device="cpu", non_blocking=True, log_level="error", **options)
        with TestClient(server.server.config.app, raise_server_exceptions=False) as client:
            yield client


def ask(client: TestClient, folder: Path, question: str, *, stream: bool = False) -> str:
    """The answer's text, or what the server says has gone wrong."""
    message = {"role": "user", "content": question}
    body = {"model": str(folder), "messages": [message], "stream": stream, "max_tokens": 8, "temperature": 0.0}
    response = client.post("/v1/chat/completions", json=body)
    if response.status_code != 200:
        return f"error {response.status_code}: {response.text}"
    if not stream:
        return str(response.json()["choices"][0]["message"]["content"]).strip()
    pieces = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
    return "".join(piece["choices"][0]["delta"].get("content") or "" for piece in pieces if piece.get("choices")).strip()


def test_with_its_code_the_server_refuses_and_answers_as_the_guarded_model(split: Halves, folder: Path, tmp_path: Path) -> None:
    wanted = [answer.text for answer in split.guarded.answer(split.prompts, max_new_tokens=8)]
    assert [text == "sorry" for text in wanted] == split.refused.tolist()
    with served(folder, tmp_path, trust_remote_code=True) as client:
        assert [ask(client, folder, prompt) for prompt in split.prompts] == wanted
        assert [ask(client, folder, prompt, stream=True) for prompt in split.prompts] == wanted


def test_without_its_code_nothing_is_guarded(split: Halves, folder: Path, tmp_path: Path) -> None:
    raw = [answer.text for answer in split.guarded.answer(split.prompts, max_new_tokens=8, raw=True)]
    with served(folder, tmp_path) as client:
        assert [ask(client, folder, prompt) for prompt in split.prompts] == raw


def test_continuous_batching_answers_nothing(split: Halves, folder: Path, tmp_path: Path) -> None:
    """It never calls `generate`: without the check where it begins, raw answers would come."""
    raw = [answer.text for answer in split.guarded.answer(split.prompts, max_new_tokens=8, raw=True)]
    with served(folder, tmp_path, trust_remote_code=True, continuous_batching=True) as client:
        for prompt, text in zip(split.prompts, raw, strict=True):
            found = ask(client, folder, prompt)
            assert found.startswith("error 5")
            assert text not in found
