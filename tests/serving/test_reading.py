"""Reading prompts: what is too long is never tokenised, who has gone is skipped, and a stop waits for nobody."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from d2unlearn.config import ServeSettings
from d2unlearn.schema import Message
from d2unlearn.serving.run import service_limits
from generation.conftest import Halves

from .conftest import Served, serving, until

CHAT = "/v1/chat/completions"


@contextmanager
def noted_reading(running: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[list[str], threading.Event]]:
    """The last message of each prompt that is rendered, and an event that rendering waits for."""
    template = running.service.engine.guarded.template
    read: list[str] = []
    go = threading.Event()
    prompt_ids = template.prompt_ids

    def noted(messages: tuple[Message, ...]) -> list[int]:
        read.append(messages[-1].content)
        go.wait(20)
        return prompt_ids(messages)

    with monkeypatch.context() as patched:
        patched.setattr(template, "prompt_ids", noted)
        try:
            yield read, go
        finally:
            go.set()


def test_a_prompt_of_too_many_characters_is_turned_down_before_it_is_tokenised(
    split: Halves, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(split.guarded, max_prompt_characters=100) as running, noted_reading(running, monkeypatch) as (read, go):
        go.set()
        fields: tuple[tuple[str, str, dict[str, Any]], ...] = (
            (
                CHAT,
                "messages",
                {"messages": [{"role": "user", "content": "w1 " * 16 + "w1"}] * 2 + [{"role": "user", "content": "w"}]},
            ),
            (CHAT, "messages", {"messages": [{"role": "user", "content": "<eos>" * 20 + "w"}]}),
            ("/v1/completions", "prompt", {"prompt": ["w1", "w" * 101]}),
        )
        for path, param, body in fields:
            answered = running.send(path, body)
            assert (answered.status, answered.error["code"], answered.error["param"]) == (400, "context_length_exceeded", param)
            assert answered.error["message"] == "the prompt has 101 characters; at most 100 are read here"
        assert read == []
        assert running.chat("w" * 100).status == 200
        assert read == ["w" * 100]


def test_the_limit_of_characters_follows_that_of_tokens(split: Halves) -> None:
    assert service_limits(split.guarded, ServeSettings("x", max_prompt_tokens=10)).max_prompt_characters == 320
    assert service_limits(split.guarded, ServeSettings("x", max_prompt_characters=7)).max_prompt_characters == 7


def test_a_client_who_left_is_not_read_and_the_others_are(split: Halves, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        serving(split.guarded) as running,
        noted_reading(running, monkeypatch) as (read, go),
        ThreadPoolExecutor(2) as pool,
    ):
        first = pool.submit(running.chat, split.prompts[0])
        until(lambda: read == [split.prompts[0]])
        body = json.dumps({"messages": [{"role": "user", "content": "w9 w9 w9"}]}).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        with socket.create_connection(("127.0.0.1", running.port), timeout=10) as client:
            client.sendall(f"{head}\r\n\r\n".encode() + body)
            until(lambda: len(running.service._calls) == 2)
        until(lambda: len(running.service._calls) == 1)
        last = pool.submit(running.chat, split.prompts[1])
        until(lambda: len(running.service._calls) == 2)
        go.set()
        texts = [each.result(20).json["choices"][0]["message"]["content"] for each in (first, last)]
    assert texts == [answer.text for answer in split.guarded.answer(split.prompts[:2])]
    assert read == split.prompts[:2]


def test_prompts_that_wait_to_be_read_are_counted(split: Halves, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        serving(split.guarded, queue=1) as running,
        noted_reading(running, monkeypatch) as (read, go),
        ThreadPoolExecutor(1) as pool,
    ):
        first = pool.submit(running.chat, split.prompts[0])
        until(lambda: len(read) == 1)
        turned_away = running.chat(split.prompts[1])
        assert (turned_away.status, turned_away.error["code"]) == (503, "overloaded")
        assert turned_away.headers["retry-after"] == "1"
        go.set()
        assert first.result(20).status == 200


def test_a_stop_does_not_wait_for_what_is_still_to_be_read(split: Halves, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        serving(split.guarded, stop_timeout=0.3) as running,
        noted_reading(running, monkeypatch) as (read, _),
        ThreadPoolExecutor(2) as pool,
    ):
        asked = [pool.submit(running.chat, prompt) for prompt in split.prompts[:2]]
        until(lambda: len(running.service._calls) == 2)
        began = time.monotonic()
        running.stop()
        for each in asked:
            answered = each.result(15)
            assert (answered.status, answered.error["code"], answered.headers["retry-after"]) == (503, "stopping", "5")
        assert time.monotonic() - began < 5
    assert len(read) == 1
