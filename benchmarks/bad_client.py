"""One client that means ill, beside others that do not: how long the others wait for their answers with it and without.

It has three connections at a time, each used again as soon as it is done: one sends a body of 1 MB of special tokens'
spellings; one sends as many of them as are read, and leaves before the answer; one sends its body a few bytes at a time.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from measuring import spread

Ask = Callable[[int, bytes], Awaitable[Any]]
"""One request on a connection of its own: (port, body) to what came back, with `status` and `seconds`."""
LARGEST = 1_000_000
"""Bytes of a body that the server reads."""
READ = 100_000
"""Characters that are read of a prompt, and a little fewer than the server's own limit."""
SPELLING = "<eos>"
AIM = 1.2
"""The others' 95th percentile with the bad client, over that without it."""


def measured_waits(port: int, bodies: Sequence[bytes], ask: Ask, rounds: int, requests: int = 3) -> dict[str, Any]:
    """In each round, in turn with the bad client and without: every body's client asks `requests` times, one after another."""
    waits: dict[str, list[list[float]]] = {"without": [], "with": []}
    seen: Counter[str] = Counter()
    for turn in range(rounds):
        for name in ("without", "with") if turn % 2 else ("with", "without"):
            waits[name].append(asyncio.run(_round(port, bodies, ask, requests, seen if name == "with" else None)))
    p95 = {name: [float(np.quantile(each, 0.95)) for each in found] for name, found in waits.items()}
    pooled = {name: float(np.quantile(np.concatenate(found), 0.95)) for name, found in waits.items()}
    return {
        "clients": len(bodies),
        "requests": {name: sum(map(len, found)) for name, found in waits.items()},
        "p95_seconds": {name: round(found, 3) for name, found in pooled.items()},
        "p95_ratio": round(pooled["with"] / pooled["without"], 3),
        "p95_ratio_of_a_round": spread([a / b for a, b in zip(p95["with"], p95["without"], strict=True)]),
        "bad_requests": dict(sorted(seen.items())),
        "aim": AIM,
    }


async def _round(port: int, bodies: Sequence[bytes], ask: Ask, requests: int, seen: Counter[str] | None) -> list[float]:
    """Seconds of each request of the others. seen: counts what the bad client did; None: there is none."""
    bad = [] if seen is None else [asyncio.create_task(each(port, seen)) for each in (_spelling, _leaving, _slow)]
    waits: list[float] = []

    async def client(body: bytes) -> None:
        for _ in range(requests):
            got = await ask(port, body)
            if got.status != 200:
                raise RuntimeError(f"one of the others got {got.status}")
            waits.append(got.seconds)

    try:
        await asyncio.gather(*map(client, bodies))
    finally:
        for task in bad:
            task.cancel()
        await asyncio.gather(*bad, return_exceptions=True)
    return waits


def _body(characters: int) -> bytes:
    whole = SPELLING * (characters // len(SPELLING))
    return json.dumps({"messages": [{"role": "user", "content": whole}], "max_tokens": 1}).encode()


def _head(length: int) -> bytes:
    kind = "Content-Type: application/json\r\nConnection: close"
    return f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n{kind}\r\nContent-Length: {length}\r\n\r\n".encode()


async def _spelling(port: int, seen: Counter[str]) -> None:
    content = _body(LARGEST - 200)
    await _again(port, seen, "1 MB of spellings", lambda reader, writer: _sent(reader, writer, content, wait=True))


async def _leaving(port: int, seen: Counter[str]) -> None:
    content = _body(READ)
    await _again(port, seen, "left before the answer", lambda reader, writer: _sent(reader, writer, content, wait=False))


async def _slow(port: int, seen: Counter[str]) -> None:
    content = _body(READ)

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(_head(len(content)))
        until = time.monotonic() + 5
        for place in range(0, len(content), 10):
            if time.monotonic() > until:
                return
            writer.write(content[place : place + 10])
            await writer.drain()
            await asyncio.sleep(0.05)

    await _again(port, seen, "a few bytes at a time", drip)


Using = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def _again(port: int, seen: Counter[str], name: str, using: Using) -> None:
    """Until it is cancelled, on one connection after another."""
    while True:
        with suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            seen[name] += 1
            try:
                await using(reader, writer)
            finally:
                writer.close()


async def _sent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, content: bytes, *, wait: bool) -> None:
    writer.write(_head(len(content)) + content)
    await writer.drain()
    if wait:
        await reader.read()
    else:
        await asyncio.sleep(0.05)
