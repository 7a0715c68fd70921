"""`d2unlearn serve` as a process of its own: killed under load and started again, stopped by a signal."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest
from openai import OpenAI
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from d2unlearn.generation.guarded import GuardedModel
from gate import tiny
from generation.conftest import Halves


@pytest.fixture(scope="module")
def artifact(
    tmp_path_factory: pytest.TempPathFactory, split: Halves, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> Path:
    folder = tmp_path_factory.mktemp("process") / "served"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    split.guarded.gate.save(folder)  # type: ignore[union-attr]
    return folder


@contextmanager
def process(artifact: Path, port: int) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The command with the port that it says it listens on."""
    arguments = ["serve", "--model", str(artifact), "--port", str(port), "--stop-timeout", "5"]
    running = subprocess.Popen(
        [sys.executable, "-m", "d2unlearn.cli.main", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert running.stderr is not None
    try:
        said = ""
        while not (found := re.search(r"listening on http://127\.0\.0\.1:(\d+)/v1", said)):
            line = running.stderr.readline()
            assert line, said
            said += line
        drain = threading.Thread(target=running.stderr.read, daemon=True)
        drain.start()
        yield running, int(found[1])
    finally:
        running.kill()
        running.wait(20)
        drain.join(20)
        running.stderr.close()


def client_of(port: int) -> OpenAI:
    return OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=20)


def test_a_server_is_killed_under_load_comes_back_and_stops_in_good_order(artifact: Path, split: Halves) -> None:
    """Every answer is the prompt's own, before and after; whoever gets none gets a connection error. A signal lets finish."""
    expected = {p: a.text for p, a in zip(split.prompts, split.guarded.answer(split.prompts), strict=True)}
    answered: list[bool] = []
    failed: list[openai.APIError] = []
    over = threading.Event()

    def load(start: int) -> None:
        with client_of(port) as client:
            for turn in range(10_000):
                if over.is_set():
                    return
                prompt = split.prompts[(start + turn) % len(split.prompts)]
                try:
                    got = client.completions.create(model="served", prompt=prompt)
                    answered.append(got.choices[0].text == expected[prompt])
                except openai.APIError as error:
                    failed.append(error)
                    time.sleep(0.2)

    def answers_reach(count: int, running: subprocess.Popen[str]) -> None:
        while len(answered) < count:
            assert running.poll() is None
            time.sleep(0.05)

    with ThreadPoolExecutor(8) as pool:
        with process(artifact, 0) as (first, port):
            clients = [pool.submit(load, start) for start in range(8)]
            answers_reach(20, first)
            assert failed == []  # whoever reads that it listens can ask at once
            first.kill()
        before = len(answered)
        with process(artifact, port) as (second, again):
            answers_reach(before + 20, second)
            over.set()
            for each in clients:
                each.result(timeout=30)
            assert again == port
            assert_that_a_signal_lets_a_stream_finish(second, port, split.prompts, list(expected.values()))
    assert all(answered)
    assert {type(error) for error in failed} == {openai.APIConnectionError}


def assert_that_a_signal_lets_a_stream_finish(
    running: subprocess.Popen[str], port: int, prompts: list[str], texts: list[str]
) -> None:
    """The signal comes after the first token; the exit code says that all went well, and the port is free."""
    said = [""] * len(prompts)
    with client_of(port) as client:
        for chunk in client.completions.create(model="served", prompt=prompts, stream=True):
            if not any(said):
                running.send_signal(signal.SIGTERM)
            said[chunk.choices[0].index] += chunk.choices[0].text
        assert running.wait(30) == 0
        with pytest.raises(openai.APIConnectionError):
            client.models.list()
    assert all(whole.endswith(text) for whole, text in zip(said, texts, strict=True))


def test_tokens_of_the_gate_tests_are_those_of_the_folder(artifact: Path, split: Halves) -> None:
    """What the process loads is the guarded model that this process compares with."""
    loaded = GuardedModel.from_pretrained(artifact, device="cpu")
    prompts = tiny.questions(33, 3)
    assert [a.text for a in loaded.answer(prompts)] == [a.text for a in split.guarded.answer(prompts)]
