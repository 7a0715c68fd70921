"""How fast large bodies are taken up: one client of megabytes does not get the time in which others are answered.

A body costs the thread that serves all: it is parsed, checked and tokenised, and what it has too many of is only found then.
The first `FREE_BYTES` of each are free. What is beyond is taken up at one rate for all together, in the order of arrival,
whoever sends it: behind a proxy all clients have one address. Who has left by then is not taken up at all.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from starlette.types import Receive

FREE_BYTES = 16_384
"""Of each body: a conversation of thousands of words waits for nobody."""
BYTES_A_SECOND = 250_000


class BodyPace:
    """A leaky bucket. `at_once`: bytes that need not wait where nothing large came for a while; `clock`: in seconds."""

    def __init__(self, at_once: float, rate: float = BYTES_A_SECOND, clock: Callable[[], float] = time.monotonic) -> None:
        self._at_once = at_once
        self._rate = rate
        self._clock = clock
        self._level = 0.0
        self._seen = clock()
        self._turn = asyncio.Lock()

    async def admits(self, size: int, receive: Receive) -> bool:
        """Wait for the turn of a body of so many bytes that has arrived whole; whether its client is still there then."""
        if size <= FREE_BYTES:
            return True
        async with self._turn:
            while not (left := await _has_left(receive)) and (seconds := self._seconds_to_wait()) > 0:
                await asyncio.sleep(min(seconds, 0.25))
            self._level += 0 if left else size - FREE_BYTES
        return not left

    def _seconds_to_wait(self) -> float:
        now = self._clock()
        self._level = max(0.0, self._level - self._rate * (now - self._seen))
        self._seen = now
        return (self._level - self._at_once) / self._rate


async def _has_left(receive: Receive) -> bool:
    """Behind a whole body nothing is received but the client's leaving. Waits for nothing."""
    try:
        async with asyncio.timeout(0):
            return bool((await receive())["type"] == "http.disconnect")
    except TimeoutError:
        return False
