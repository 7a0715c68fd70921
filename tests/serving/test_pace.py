"""Large bodies wait for one another and small ones for nobody, by a clock that the test moves."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from d2unlearn.serving import middleware
from d2unlearn.serving import pace as pace_module
from d2unlearn.serving.pace import FREE_BYTES, BodyPace
from generation.conftest import Halves

from .conftest import serving

CHAT = "/v1/chat/completions"


class Clock:
    """Seconds that pass only where something sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(pace_module.asyncio, "sleep", made.sleep)
    return made


async def there() -> dict[str, Any]:
    """A client that waits for its answer: nothing more comes from it."""
    await asyncio.Event().wait()
    raise AssertionError


async def gone() -> dict[str, Any]:
    return {"type": "http.disconnect"}


def large(size: int) -> int:
    """The size of a body that counts as so many bytes."""
    return FREE_BYTES + size


def test_beyond_what_goes_at_once_bodies_are_taken_up_at_the_rate_in_their_order(clock: Clock) -> None:
    """1,000 bytes at once and 100 a second: two at 0 s (only the second is too much), each other one 10 s after the last."""
    taken: list[tuple[int, float]] = []

    async def body(pace: BodyPace, number: int) -> None:
        assert await pace.admits(large(1000), there)
        taken.append((number, clock.now))

    async def all_of_them() -> None:
        pace = BodyPace(at_once=1000, rate=100, clock=clock)
        await asyncio.gather(*(body(pace, number) for number in range(5)))

    asyncio.run(all_of_them())
    assert [number for number, _ in taken] == [0, 1, 2, 3, 4]
    assert [at for _, at in taken] == pytest.approx([0, 0, 10, 20, 30], abs=1e-6)


def test_small_ones_wait_for_nobody_and_count_for_nothing(clock: Clock) -> None:
    async def many() -> None:
        pace = BodyPace(at_once=1000, rate=100, clock=clock)
        assert await pace.admits(large(5000), there)
        assert [await pace.admits(FREE_BYTES, there) for _ in range(50)] == [True] * 50
        assert clock.now == 0
        assert await pace.admits(large(1), there)  # waits for the 4,000 beyond, and for none of the small ones
        assert clock.now == pytest.approx(40)

    asyncio.run(many())


def test_who_has_left_is_not_taken_up_and_costs_the_others_nothing(clock: Clock) -> None:
    async def leaving() -> None:
        pace = BodyPace(at_once=1000, rate=100, clock=clock)
        assert await pace.admits(large(3000), there)
        assert [await pace.admits(large(1_000_000), gone) for _ in range(20)] == [False] * 20
        assert clock.now == 0
        assert await pace.admits(large(1), there)
        assert clock.now == pytest.approx(20)

    asyncio.run(leaving())


def test_a_server_answers_small_requests_while_large_ones_wait_and_turns_those_down_in_the_end(
    split: Halves, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a byte a second only the first large body is ever taken up."""
    monkeypatch.setattr(middleware, "BodyPace", lambda at_once: BodyPace(at_once=1, rate=1))
    small: dict[str, Any] = {"messages": [{"role": "user", "content": "w1"}], "max_tokens": 2}
    big = {**small, "user": "w" * large(0)}
    with serving(split.guarded, timeout=3.0) as running, ThreadPoolExecutor(2) as pool:
        assert running.send(CHAT, big).status == 200
        waiting = [pool.submit(running.send, CHAT, big) for _ in range(2)]
        assert running.send(CHAT, small).status == 200
        ended = [each.result() for each in waiting]
    assert [(each.status, each.error["code"]) for each in ended] == [(503, "overloaded")] * 2
