"""In front of the application: who may come in, how much they may bring and how long they may take. It reads no body itself.

Everything that is turned away gets an error in OpenAI's form and a status code of its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from d2unlearn.runtime import say
from d2unlearn.serving.openai_api import ApiError, error_response
from d2unlearn.serving.pace import BodyPace

HEAD_SECONDS = 10.0
"""A connection that shows no whole request head for so long, twice in a row, is closed."""
LOOPBACK = ("127.0.0.1", "::1", "localhost")
GATE_HEADER = "x-d2-gate"
METRICS_PATH = "/metrics"
SAFE_HEADERS = {
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
}
"""On every response, so that a browser neither keeps nor reinterprets an answer, nor shows it to another site's page."""


@dataclass(frozen=True)
class Rules:
    """`hosts`: names that a request may be addressed to (None: any), so that no web page elsewhere reaches a server on loopback
    by a name of its own. `keys`: digests of the API keys, none when none is needed; `metrics_keys`: of those that alone open
    `/metrics`, none when the others do. `gate`: what `x-d2-gate` says of the gate.
    `body_seconds`, `request_seconds`: for sending the body, and for everything.
    """

    hosts: frozenset[str] | None
    keys: tuple[bytes, ...]
    max_body_bytes: int
    body_seconds: float
    request_seconds: float
    gate: str
    metrics_keys: tuple[bytes, ...] = ()
    log: bool = True


def key_digest(key: str) -> bytes:
    """What is kept of an API key; equally long for all, so that comparing tells no length."""
    return hashlib.sha256(key.encode()).digest()


class LimitsMiddleware:
    """ASGI middleware. `note` is told path, status and seconds of every request."""

    def __init__(
        self, app: ASGIApp, rules: Rules, note: Callable[[str, int, float], None], too_many_connections: Callable[[], bool]
    ) -> None:
        self._app = app
        self._rules = rules
        self._note = note
        self._too_many_connections = too_many_connections
        self._pace = BodyPace(at_once=rules.max_body_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(send, self._rules.gate)
        try:
            problem = self._problem(scope)
            if problem is not None:
                await error_response(problem)(scope, receive, exchange.send)
            else:
                await self._pass_on(scope, receive, exchange)
        finally:
            seconds = time.perf_counter() - exchange.began
            self._note(scope["path"], exchange.status, seconds)
            if self._rules.log:
                say(f"{scope['method']} {json.dumps(scope['path'])} {exchange.status} {seconds:.3f} s")

    async def _pass_on(self, scope: Scope, receive: Receive, exchange: _Exchange) -> None:
        """Run the application; a response that takes too long is an error, or cut off where it has begun."""
        try:
            async with asyncio.timeout(self._rules.request_seconds):
                await self._app(scope, _measured(receive, self._rules, self._pace), exchange.send)
        except TimeoutError:
            if not exchange.status:
                await error_response(ApiError(504, "this took too long", code="timeout"))(scope, receive, exchange.send)

    def _problem(self, scope: Scope) -> ApiError | None:
        headers, rules = Headers(scope=scope), self._rules
        host = _without_port(headers.get("host", ""))
        if rules.hosts is not None and host not in rules.hosts:
            return ApiError(421, "this server is not reached by that host name", code="wrong_host")
        if scope["path"] == "/health":
            return None
        if self._too_many_connections():
            return ApiError(503, "too many connections are open; try again in a moment", code="overloaded", retry_after=1)
        keys = (rules.metrics_keys if scope["path"] == METRICS_PATH else ()) or rules.keys
        if keys and not _is_one_of(keys, headers.get("authorization", "")):
            return ApiError(401, "give a valid API key: Authorization: Bearer KEY", code="invalid_api_key")
        if scope["method"] != "POST":
            return None
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            return ApiError(415, "send JSON, with Content-Type: application/json", code="unsupported_media_type")
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > rules.max_body_bytes:
            return _too_large(rules)
        return None


def _is_one_of(keys: Sequence[bytes], given: str) -> bool:
    """Whether a header brings one of the keys; every one is compared, each in constant time."""
    scheme, _, key = given.partition(" ")
    digest = key_digest(key.strip())
    matches = [hmac.compare_digest(digest, known) for known in keys]
    return any(matches) and scheme.lower() == "bearer"


class _Exchange:
    """One request: when it began, and the status that was answered (0: none yet)."""

    def __init__(self, send: Send, gate: str) -> None:
        self.began = time.perf_counter()
        self.status = 0
        self._send = send
        self._gate = gate

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = int(message["status"])
            MutableHeaders(scope=message).update({**SAFE_HEADERS, GATE_HEADER: self._gate})
        await self._send(message)


def _measured(receive: Receive, rules: Rules, pace: BodyPace) -> Receive:
    """`receive` that counts the body's bytes and seconds until it is whole. The end of a large one comes at its turn."""
    taken, whole = 0, False
    until = time.monotonic() + rules.body_seconds

    async def measured() -> Message:
        nonlocal taken, whole
        if whole:
            return await receive()
        try:
            async with asyncio.timeout(max(until - time.monotonic(), 0)):
                message = await receive()
        except TimeoutError:
            raise ApiError(408, "the body did not arrive in time", code="timeout") from None
        taken += len(message.get("body", b""))
        whole = message["type"] != "http.request" or not message.get("more_body", False)
        if taken > rules.max_body_bytes:
            raise _too_large(rules)
        if whole and message["type"] == "http.request" and not await _turn_of(taken, receive, rules, pace):
            return {"type": "http.disconnect"}
        return message

    return measured


async def _turn_of(size: int, receive: Receive, rules: Rules, pace: BodyPace) -> bool:
    """Wait for a body's turn, as long as a body may take; whether its client is still there."""
    try:
        async with asyncio.timeout(rules.body_seconds):
            return await pace.admits(size, receive)
    except TimeoutError:
        raise ApiError(503, "many large bodies are waiting; try again in a moment", code="overloaded", retry_after=5) from None


def _too_large(rules: Rules) -> ApiError:
    return ApiError(413, f"the body is larger than {rules.max_body_bytes} bytes", code="body_too_large")


def _without_port(host: str) -> str:
    name = host.rpartition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    return name.lower()


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, which closes connections that open and then send nothing, or a request's head byte by byte."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._seen: Any = None
        self._watch = self.loop.call_later(HEAD_SECONDS, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        self._watch.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        cycle: Any = self.cycle
        idle = cycle is None or cycle.response_complete
        if idle and cycle is self._seen and self._looked:
            self.transport.close()
            return
        self._seen, self._looked = cycle, True
        self._watch = self.loop.call_later(HEAD_SECONDS, self._look)

    _looked = False
