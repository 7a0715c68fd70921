"""A server on loopback in this process, over the gate tests' tiny model with a threshold that splits the prompts in halves."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from fastapi import FastAPI
from openai import OpenAI
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from d2unlearn.config import ServeSettings
from d2unlearn.gate import EnergyGate
from d2unlearn.generation.guarded import GuardedModel
from d2unlearn.serving.app import Service, make_app
from d2unlearn.serving.middleware import key_digest
from d2unlearn.serving.run import Server, listen, make_service
from gate.conftest import gate, model, one_thread, tokenizer
from generation.conftest import SCORES, Halves, halves

__all__ = ["gate", "model", "one_thread", "tokenizer"]

NAME = "tiny"


class Answered(NamedTuple):
    """A response: its status, headers (names in small letters) and body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = self.json["error"]
        assert sorted(found) == ["code", "message", "param", "type"]
        return found


@dataclass(frozen=True)
class Served:
    """A running server."""

    service: Service
    server: Server
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, key: str = "none") -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=30)

    def send(
        self,
        path: str,
        body: bytes | str | Mapping[str, Any] | None = None,
        *,
        method: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answered:
        """One request on a connection of its own; a mapping is sent as JSON."""
        content = json.dumps(body).encode() if isinstance(body, Mapping) else body.encode() if isinstance(body, str) else body
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            kind = {} if content is None else {"Content-Type": "application/json"}
            connection.request(method or ("GET" if content is None else "POST"), path, content, {**kind, **(headers or {})})
            response = connection.getresponse()
            return Answered(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def chat(self, text: str, **fields: Any) -> Answered:
        """One user message."""
        return self.send("/v1/chat/completions", {"messages": [{"role": "user", "content": text}], **fields})

    def healthy(self) -> bool:
        """Whether the server says so and still refuses and answers."""
        return self.send("/health").status == 200

    def stop(self) -> None:
        """As a signal does."""
        self.server.handle_exit(15, None)


Start = Callable[..., AbstractContextManager[Served]]


@contextmanager
def serving(
    guarded: GuardedModel,
    *,
    keys: Sequence[str] = (),
    metrics_keys: Sequence[str] = (),
    with_app: Callable[[FastAPI, Service], None] = lambda app, service: None,
    **settings: Any,
) -> Iterator[Served]:
    """Serve `guarded` on a free port while the block runs."""
    named = {"metrics_keys": "a file with these keys"} if metrics_keys else {}
    wanted = ServeSettings(**{"model": NAME, "port": 0, "stop_timeout": 5.0, **named, **settings})
    listener = listen(wanted.host, wanted.port)
    service = make_service(guarded, wanted)
    app = make_app(service)
    with_app(app, service)
    server = Server(app, service, wanted, *([key_digest(key) for key in each] for each in (keys, metrics_keys)))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        until(lambda: server.started)
        yield Served(service, server, listener.getsockname()[1])
    finally:
        server.handle_exit(15, None)
        thread.join(30)
        listener.close()
        assert not thread.is_alive()


def until(holds: Callable[[], Any], seconds: float = 20.0) -> None:
    """Wait for it; fail when it does not come."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


@contextmanager
def slowed(model: torch.nn.Module, seconds: float) -> Iterator[None]:
    """Every forward pass takes at least so long."""
    handle = model.register_forward_pre_hook(lambda *_: time.sleep(seconds))
    try:
        yield
    finally:
        handle.remove()


@pytest.fixture(scope="session")
def split(gate: EnergyGate, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Halves:
    """Refuses half of its prompts, some at once and some late."""
    return halves(gate, model, tokenizer, SCORES["early-or-window"], n=20)


@pytest.fixture(scope="session")
def served(split: Halves) -> Iterator[Served]:
    """One server for the tests that leave it as it was."""
    with serving(split.guarded) as running:
        yield running
