"""The guarded model behind OpenAI's HTTP interface: chat and text completions, streamed or whole, models, health, metrics.

Each answer is decided by the gate that the model was loaded with; nothing that a client sends changes it. Prompts are rendered
by the same template as in calibration, one at a time: a tokenizer that two threads use at once could read a special token
typed as text as the token.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from d2unlearn.errors import DataError, GateError
from d2unlearn.gate import EnergyGate
from d2unlearn.gate.groups import group_of
from d2unlearn.runtime import say
from d2unlearn.schema import Message
from d2unlearn.serving.batch import Completion, GenerationRequest, Piece
from d2unlearn.serving.engine import OUT_OF_MEMORY, Busy, Engine, Job, Stopping
from d2unlearn.serving.metrics import Metrics
from d2unlearn.serving.middleware import METRICS_PATH
from d2unlearn.serving.openai_api import (
    ApiError,
    ChatRequest,
    Reply,
    TextRequest,
    error_body,
    error_response,
    told_tokens,
    unreadable,
)

LOOK_SECONDS = 0.25
"""How often a waiting request looks whether its client is still there."""
TURNS_TO_PROMPT = 4
"""Turns and sentences that are read by themselves may have so many times the tokens of the longest prompt, together."""
Event = Piece | Completion | Exception
_T = TypeVar("_T")


@dataclass(frozen=True)
class ServiceLimits:
    """Tokens and characters of a prompt, tokens of an answer (and how many where none are asked for), seconds of a request."""

    max_prompt_tokens: int
    max_prompt_characters: int
    max_new_tokens: int
    default_new_tokens: int
    timeout: float


class Call:
    """One HTTP request's answers, on their way from the engine's thread to the event loop."""

    def __init__(self, streams: bool, seconds: float) -> None:
        self.streams = streams
        self.gone = False
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time() + seconds
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()

    def put(self, index: int, event: Event) -> None:
        """From any thread; after the loop has closed nobody is there to read it."""
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))
        except RuntimeError:
            self.gone = True

    async def events(self, count: int, request: Request) -> AsyncIterator[tuple[int, Piece | Completion]]:
        """What comes, until `count` prompts have their completion. Raises `ApiError` when there is none to come."""
        while count:
            index, event = await self._next(request)
            if isinstance(event, Exception):
                raise _failure(event)
            count -= isinstance(event, Completion)
            yield index, event

    async def result_of(self, work: Future[_T], request: Request) -> _T:
        """What the work comes to. It is given up, and not begun, when the client goes, time is up or the server ends."""
        waited = asyncio.wrap_future(work)
        try:
            while (left := self._deadline - self._loop.time()) > 0 and not self.gone:
                done, _ = await asyncio.wait([waited], timeout=min(left, LOOK_SECONDS))
                if done:
                    return work.result()
                if await request.is_disconnected():
                    raise ApiError(499, "the client has gone")
            raise _stopped() if self.gone else ApiError(504, "the answer was not ready in time", code="timeout")
        finally:
            work.cancel()
            waited.cancel()

    async def _next(self, request: Request) -> tuple[int, Event]:
        while (left := self._deadline - self._loop.time()) > 0:
            try:
                return await asyncio.wait_for(self._events.get(), min(left, LOOK_SECONDS))
            except TimeoutError:
                if await request.is_disconnected():
                    raise ApiError(499, "the client has gone") from None
        raise ApiError(504, "the answer was not ready in time", code="timeout")


class _Caller:
    """One prompt of a call, as the engine sees it."""

    def __init__(self, call: Call, index: int) -> None:
        self._call = call
        self._index = index

    @property
    def streams(self) -> bool:
        return self._call.streams

    @property
    def gone(self) -> bool:
        return self._call.gone

    def take(self, event: Piece | Completion) -> None:
        self._call.put(self._index, event)

    def fail(self, error: Exception) -> None:
        self._call.put(self._index, error)


class Service:
    """What the routes share: the engine, the model's name, limits, counts, and the calls that are open."""

    def __init__(
        self,
        engine: Engine,
        name: str,
        limits: ServiceLimits,
        metrics: Metrics,
        *,
        log_prompts: bool = False,
        hide_energy: bool = False,
        strict_system: bool = False,
    ) -> None:
        self.engine = engine
        self.name = name if engine.guarded.gate is not None else f"{name}:raw"
        self.limits = limits
        self.metrics = metrics
        self._log_prompts = log_prompts
        self._hide_energy = hide_energy
        self._strict_system = strict_system
        self._refusal_tokens = refusal_lengths(engine) if hide_energy else None
        self._calls: set[Call] = set()
        self._reading = 0
        self._renderer = ThreadPoolExecutor(1, "d2unlearn-template")

    async def complete(self, body: ChatRequest | TextRequest, request: Request) -> Response:
        """Answer a request: whole, or as a stream."""
        if body.model not in (None, self.name):
            raise ApiError(404, f"the model here is {self.name}", code="model_not_found", param="model")
        if body.show_energy and self._hide_energy:
            raise ApiError(403, "this server does not show energies", code="energies_hidden", param="show_energy")
        call = Call(bool(body.stream), self.limits.timeout)
        asked = await self.asked(body, call, request)
        self._submit(asked, call)
        reply = Reply(body, self.name, self._refusal_tokens)
        events = self._noted(call, asked, request)
        if not body.stream:
            completions = {index: event async for index, event in events if isinstance(event, Completion)}
            return JSONResponse(reply.whole([completions[i] for i in range(len(asked))]))
        first = await anext(events)
        return StreamingResponse(_stream(reply, body, first, events), media_type="text/event-stream")

    async def asked(self, body: ChatRequest | TextRequest, call: Call, request: Request) -> list[GenerationRequest]:
        """The prompts as the engine takes them, with answers at most as long as answers are here. They wait for one thread.

        Raises `ApiError` for one that is too long (in characters before anything is tokenised), or no conversation to the
        template; where as many wait as may; and where nobody waits for this one any more.
        """
        prompts = body.prompts()
        for prompt in prompts:
            self._check_characters(prompt, body)
        if self._reading + len(prompts) > self.engine.limits.queue:
            raise ApiError(503, f"{self._reading} prompts are waiting; try again in a moment", code="overloaded", retry_after=1)
        self._reading += len(prompts)
        self._calls.add(call)
        try:
            return [await self._read(prompt, body, call, request) for prompt in prompts]
        finally:
            self._reading -= len(prompts)
            self._calls.discard(call)

    def _check_characters(self, prompt: tuple[Message, ...], body: ChatRequest | TextRequest) -> None:
        count, most = sum(len(message.content) for message in prompt), self.limits.max_prompt_characters
        if count > most:
            said = f"the prompt has {count} characters; at most {most} are read here"
            raise ApiError(400, said, code="context_length_exceeded", param=body.asked_in)

    def _check_system(self, prompt: tuple[Message, ...], body: ChatRequest | TextRequest) -> None:
        """Count a request under another system message than the deployment's; turn it down where that is wished."""
        if any(message.role == "system" and message.content != self.engine.guarded.system for message in prompt):
            self.metrics.other_system.inc()
            if self._strict_system:
                said = "messages: this server answers under its own system message alone; leave the system message out"
                raise ApiError(400, said, code="system_message", param=body.asked_in)

    async def _read(
        self, prompt: tuple[Message, ...], body: ChatRequest | TextRequest, call: Call, request: Request
    ) -> GenerationRequest:
        limits = self.limits
        if self._log_prompts:
            say(f"prompt {json.dumps([list(message) for message in prompt])}")
        self._check_system(prompt, body)
        gate = self.engine.guarded.gate
        if gate is not None:
            self.metrics.note_group(group_of(self.engine.guarded.conversation(prompt), gate.system))
        work = self._renderer.submit(self.rendered, prompt)
        try:
            ids, *turns = await call.result_of(work, request)
        except DataError as error:
            raise ApiError(400, str(error), code="invalid_value", param=body.asked_in) from None
        if len(ids) > limits.max_prompt_tokens:
            said = f"the prompt has {len(ids)} tokens; at most {limits.max_prompt_tokens} are read here"
            raise ApiError(400, said, code="context_length_exceeded", param=body.asked_in)
        if (together := sum(map(len, turns))) > TURNS_TO_PROMPT * limits.max_prompt_tokens:
            said = f"the user's {len(turns)} turns and sentences, each read by itself, have {together} tokens; send fewer"
            raise ApiError(400, said, code="context_length_exceeded", param=body.asked_in)
        longest = min(body.longest or limits.default_new_tokens, limits.max_new_tokens)
        guarded = self.engine.guarded
        refusal = None if guarded.gate is None else guarded.refusal(prompt, ids)
        own = tuple(map(tuple, turns))
        return GenerationRequest(tuple(ids), longest, body.stops, body.sampling, own, refusal, guarded.lead_of(prompt))

    def rendered(self, prompt: tuple[Message, ...]) -> list[list[int]]:
        """The ids of a conversation, and those of the turns that it is judged by."""
        guarded = self.engine.guarded
        return [
            guarded.template.prompt_ids(guarded.conversation(prompt)),
            *(guarded.turns_of(prompt) if guarded.gate is not None else ()),
        ]

    def stop(self) -> None:
        """Take no more requests."""
        self.engine.stop()

    def end_all(self) -> None:
        """End what is still running, with an error that says why."""
        for call in self._calls:
            call.gone = True
            call.put(-1, _stopped())

    def _submit(self, asked: list[GenerationRequest], call: Call) -> None:
        try:
            self.engine.submit([Job(prompt, _Caller(call, index)) for index, prompt in enumerate(asked)])
        except Busy as error:
            raise ApiError(503, str(error), code="overloaded", retry_after=1) from None
        except Stopping as error:
            raise ApiError(503, str(error), code="stopping", retry_after=5) from None

    async def _noted(
        self, call: Call, asked: list[GenerationRequest], request: Request
    ) -> AsyncIterator[tuple[int, Piece | Completion]]:
        """The call's events, counted; the engine is told when nobody waits for them any more."""
        self._calls.add(call)
        try:
            async for index, event in call.events(len(asked), request):
                if isinstance(event, Completion):
                    self.metrics.note_completion(event, told_tokens(event, self._refusal_tokens))
                    if as_calibrated(asked[index], self.engine.guarded.gate):
                        self.metrics.watch(event)
                yield index, event
        finally:
            call.gone = True
            self._calls.discard(call)


def as_calibrated(asked: GenerationRequest, gate: EnergyGate | None) -> bool:
    """Whether a request's score can be held against those of calibration: greedy, and ended by its own end or the limit."""
    return gate is not None and asked.sampling is None and not asked.stop and asked.max_new_tokens >= gate.max_new_tokens


def refusal_lengths(engine: Engine) -> dict[str, int]:
    """The tokens of each text that requests are refused with."""
    guarded = engine.guarded
    return {text: len(guarded.template.text_ids(text)) for text in guarded.refusal_texts}


async def _stream(
    reply: Reply, body: ChatRequest | TextRequest, first: tuple[int, Piece | Completion], events: AsyncIterator[Any]
) -> AsyncIterator[str]:
    """Server-sent events. An error after the first becomes the last event."""
    completions: dict[int, Completion] = {}
    if isinstance(body, ChatRequest):
        yield _sent(reply.start(0))
    try:
        async for index, event in _chained(first, events):
            if isinstance(event, Completion):
                completions[index] = event
                yield _sent(reply.end(index, event))
            else:
                yield _sent(reply.piece(index, event.text))
    except ApiError as error:
        yield _sent(error_body(error.status_code, str(error.detail), error.code, error.param))
        return
    if body.counts_at_end:
        yield _sent(reply.counts(list(completions.values())))
    yield "data: [DONE]\n\n"


async def _chained(first: tuple[int, Piece | Completion], events: AsyncIterator[Any]) -> AsyncIterator[Any]:
    yield first
    async for event in events:
        yield event


def _sent(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False, allow_nan=False)}\n\n"


def _stopped() -> ApiError:
    return ApiError(503, "the server was stopped", code="stopping", retry_after=5)


def _failure(error: Exception) -> ApiError:
    """What a client is told of an error; of one that nobody foresaw nothing, since its text may quote a request."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, OUT_OF_MEMORY):
        return ApiError(503, "the server ran out of memory on this request; ask for less", code="out_of_memory")
    if isinstance(error, GateError):
        return ApiError(500, str(error), code="gate_error")
    return ApiError(500, "the answer could not be made", code="internal_error")


def make_app(service: Service) -> FastAPI:
    """The routes. There is no documentation page: it would load scripts from elsewhere."""
    app = FastAPI(title="d2unlearn", docs_url=None, redoc_url=None, openapi_url=None)
    guarded = service.engine.guarded

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        return await service.complete(body, request)

    @app.post("/v1/completions")
    async def text(body: TextRequest, request: Request) -> Response:
        return await service.complete(body, request)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model_entry(service)]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        if name != service.name:
            raise ApiError(404, f"the model here is {service.name}", code="model_not_found", param="model")
        return model_entry(service)

    @app.get("/health")
    async def health() -> Response:
        alive = service.engine.alive
        state = {"status": "ok" if alive else "stopping", "model": service.name, "guarded": guarded.gate is not None}
        return JSONResponse({**state, "waiting": service.engine.waiting}, status_code=200 if alive else 503)

    @app.get(METRICS_PATH)
    async def metrics() -> Response:
        service.metrics.queue.set(service.engine.waiting)
        return Response(service.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.exception_handler(HTTPException)
    async def known(request: Request, error: HTTPException) -> Response:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return error_response(unreadable(error.errors(), error.body))

    @app.exception_handler(GateError)
    @app.exception_handler(Exception)
    async def unanswered(request: Request, error: Exception) -> Response:
        return error_response(_failure(error))

    return app


def model_entry(service: Service) -> dict[str, Any]:
    """The model in a list of models: its name, whether it is guarded, and what the gate promises."""
    gate = service.engine.guarded.gate
    promise = "raw: nothing guards these answers" if gate is None else gate.guarantee
    return {
        "id": service.name,
        "object": "model",
        "created": 0,
        "owned_by": "d2unlearn",
        "guarded": gate is not None,
        "guarantee": promise,
    }
