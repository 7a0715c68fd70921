"""The one thread that runs the model: requests wait in a queue, and those drawn alike are answered together.

Only this thread touches the model, since two generations at once would read each other's energies. It fails closed: whatever
goes wrong while a guarded answer is made is a refusal, or an error where memory ran out or the gate cannot be run on these
weights; half an answer is never passed off as a whole one.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch

from d2unlearn.errors import D2Error, GateError
from d2unlearn.generation.guarded import GuardedModel
from d2unlearn.runtime import say
from d2unlearn.serving.batch import Completion, GenerationRequest, Piece, Recipient, generate_rows, refusal_of

_T = TypeVar("_T")
OUT_OF_MEMORY = (MemoryError, torch.OutOfMemoryError)


class Busy(D2Error):
    """As many requests as may wait are waiting."""


class Stopping(D2Error):
    """The server is being stopped and takes no more requests."""


class Caller(Recipient, Protocol):
    """Who can be told, too, that there will be no answer, not even a refusal."""

    def fail(self, error: Exception) -> None: ...


class Job:
    """A request in the queue. It hands on what its caller gets, and notes whether that began and ended."""

    def __init__(self, request: GenerationRequest, caller: Caller) -> None:
        self.request = request
        self.caller = caller
        self.started = False
        self.finished = False

    @property
    def streams(self) -> bool:
        return self.caller.streams

    @property
    def gone(self) -> bool:
        return self.caller.gone

    def take(self, event: Piece | Completion) -> None:
        self.started = True
        self.finished = self.finished or isinstance(event, Completion)
        self.caller.take(event)


@dataclass(frozen=True)
class EngineLimits:
    """`batch_size`: requests at once. `queue`: requests waiting. `batch_wait`: seconds that the first one waits for company.

    `hold_back`: streams show a token only when so many more have been chosen.
    """

    batch_size: int = 16
    queue: int = 256
    batch_wait: float = 0.005
    hold_back: int = 0


class Engine:
    """The queue and its thread. `on_batch` is told the size of each batch, `on_failure` of each failed generation."""

    def __init__(
        self,
        guarded: GuardedModel,
        limits: EngineLimits,
        *,
        on_batch: Callable[[int], Any] = lambda size: None,
        on_failure: Callable[[], Any] = lambda: None,
    ) -> None:
        self.guarded = guarded
        self.limits = limits
        self._on_batch = on_batch
        self._on_failure = on_failure
        self._waiting: deque[Job | Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="d2unlearn-engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._stopping

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue requests, all of them or none. Raises `Busy` or `Stopping`."""
        self._add(jobs)

    def run(self, work: Callable[[], _T]) -> Future[_T]:
        """Queue something else to be done with the model, alone. Raises `Busy` or `Stopping`."""
        future: Future[_T] = Future()

        def do() -> None:
            if not future.set_running_or_notify_cancel():
                return  # whoever asked has gone
            try:
                future.set_result(work())
            except Exception as error:
                future.set_exception(error)

        self._add([do])
        return future

    def _add(self, work: Sequence[Job | Callable[[], None]]) -> None:
        with self._changed:
            if self._stopping:
                raise Stopping("the server is being stopped")
            if len(self._waiting) + len(work) > self.limits.queue:
                raise Busy(f"{len(self._waiting)} requests are waiting; try again in a moment")
            self._waiting.extend(work)
            self._changed.notify()

    def stop(self) -> None:
        """Take no more; what is queued is still done, except for callers who are gone."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def join(self, timeout: float) -> bool:
        """Wait until everything is done; whether it is."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopping)
                if not self._waiting:
                    return
            batch = self._next()
            if callable(batch):
                batch()
            elif batch:
                self._answer(batch)

    def _next(self) -> list[Job] | Callable[[], None]:
        """The oldest request with those that may share its batch, in the order they came; or the oldest other work."""
        with self._changed:
            if not callable(self._waiting[0]):
                deadline = time.monotonic() + self.limits.batch_wait
                full = self.limits.batch_size
                while len(self._waiting) < full and not self._stopping and (left := deadline - time.monotonic()) > 0:
                    self._changed.wait(left)
            first = self._waiting.popleft()
            if callable(first):
                return first
            batch, kept = [first], deque[Job | Callable[[], None]]()
            for work in self._waiting:
                fits = isinstance(work, Job) and len(batch) < self.limits.batch_size and _alike(first, work)
                batch.append(work) if fits and isinstance(work, Job) else kept.append(work)
            self._waiting = kept
        return [job for job in batch if not job.gone]

    def _answer(self, batch: list[Job]) -> None:
        """Answer a batch; when that fails, each request by itself, so that none falls with another."""
        self._on_batch(len(batch))
        try:
            generate_rows(self.guarded, [job.request for job in batch], batch, hold_back=self.limits.hold_back)
        except Exception as error:
            for job in batch:
                if len(batch) > 1 and not job.started and not isinstance(error, GateError):  # which holds for all of them
                    self._answer([job])
                elif not job.finished:
                    self._fail(job, error)

    def _fail(self, job: Job, error: Exception) -> None:
        """Out of memory is an error, and so is what the gate turns down: somebody has to mend it. With a gate anything else is
        a refusal: nothing says that the answer may be given.
        """
        self._on_failure()
        say(f"error: a request failed, nothing of it was answered\n{''.join(traceback.format_exception(error))}")
        if isinstance(error, (GateError, *OUT_OF_MEMORY)) or self.guarded.gate is None:
            job.caller.fail(error)
            return
        refusal = refusal_of(self.guarded.gate, job.request)
        if job.streams:
            job.take(Piece(f"\n{refusal.answer.text}" if job.started else refusal.answer.text))
        job.take(refusal)


def _alike(one: Job, other: Job) -> bool:
    sampling = one.request.sampling
    return sampling == other.request.sampling and (sampling is None or sampling.seed is None)
