"""What is asked and answered over HTTP: OpenAI's chat and text completions, without what this server does not do.

A field that would change the answer and is not supported is an error, never ignored. The gate's threshold is no field.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi.responses import JSONResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from d2unlearn.runtime import is_text
from d2unlearn.schema import Message
from d2unlearn.serving.batch import Completion, Sampling

MAX_PROMPTS = 64
"""Prompts of one text completion request."""
_SHOWN = 200
"""Characters of a client's own words in an error."""


def _whole(text: str) -> str:
    if not is_text(text):
        raise ValueError("half of a surrogate pair is no character")
    return text


Text = Annotated[str, AfterValidator(_whole)]
Stop = Annotated[Text, Field(min_length=1, max_length=200)]
Nothing = Annotated[float, Field(ge=0, le=0)]


class ApiError(HTTPException):
    """An answer that is an error, in OpenAI's form."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, param: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(status, message, None if retry_after is None else {"Retry-After": str(retry_after)})
        self.code = code
        self.param = param


def error_body(status: int, message: str, code: str | None, param: str | None) -> dict[str, Any]:
    """OpenAI's form of an error."""
    kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(error: HTTPException) -> JSONResponse:
    code, param = getattr(error, "code", None), getattr(error, "param", None)
    return JSONResponse(
        error_body(error.status_code, str(error.detail), code, param), status_code=error.status_code, headers=error.headers
    )


def unreadable(problems: Sequence[Mapping[str, Any]]) -> ApiError:
    """What pydantic found wrong with a body, the first of it, without the value that was sent."""
    first = problems[0]
    field = ".".join(str(part) for part in first["loc"] if part != "body").encode(errors="replace").decode()[:_SHOWN]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not valid JSON: {first['ctx']['error']}", code="invalid_json")
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"{field} is not a field that this server knows", code="unknown_parameter", param=field)
    return ApiError(400, f"{field or 'the body'}: {first['msg']}", code="invalid_value", param=field or None)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(_Strict):
    """A part of a message that is a list of parts."""

    type: Literal["text"]
    text: Text


class ChatMessage(_Strict):
    """A turn. `name` and `refusal` (of an answer that is sent back) change nothing."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]
    name: str | None = None
    refusal: str | None = None

    def message(self) -> Message:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message("system" if self.role == "developer" else self.role, text)


class StreamOptions(_Strict):
    """How a stream ends: with or without a chunk of counts."""

    include_usage: bool | None = None


class _Completion(_Strict):
    """What both kinds of request have. `show_energy`: energy, score and threshold with every choice (not OpenAI's)."""

    model: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    show_energy: bool = False
    n: Literal[1] | None = None
    presence_penalty: Nothing | None = None
    frequency_penalty: Nothing | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    user: str | None = None

    @property
    def longest(self) -> int | None:
        """The longest answer asked for, in tokens."""
        return self.max_tokens

    @property
    def stops(self) -> tuple[str, ...]:
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def sampling(self) -> Sampling | None:
        """Greedy unless a temperature above 0 is asked for: that is what the gate was calibrated with."""
        if not self.temperature:
            return None
        return Sampling(self.temperature, self.top_p or 1.0, None if self.seed is None else self.seed % 2**32)

    @property
    def counts_at_end(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(_Completion):
    """`POST /v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=1000)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: Literal[False] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    response_format: dict[Literal["type"], Literal["text"]] | None = None
    metadata: dict[str, str] | None = None
    store: Literal[False] | None = None

    @property
    def longest(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    def prompts(self) -> list[tuple[Message, ...]]:
        """The conversation. Raises `ApiError` unless it ends with something that the user says."""
        messages = tuple(message.message() for message in self.messages)
        if messages[-1].role != "user" or not messages[-1].content.strip():
            raise ApiError(400, "the last message should be the user's, and not empty", code="invalid_value", param="messages")
        return [messages]


class TextRequest(_Completion):
    """`POST /v1/completions`. Each prompt is asked as the user's turn: that is what the gate was calibrated for."""

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)]
    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None
    logprobs: None = None
    suffix: None = None

    def prompts(self) -> list[tuple[Message, ...]]:
        """Each prompt as a conversation of one turn. Raises `ApiError` for an empty one."""
        given = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        if not all(text.strip() for text in given):
            raise ApiError(400, "a prompt is empty", code="invalid_value", param="prompt")
        return [(Message("user", text),) for text in given]


class Reply:
    """The answers to one request in OpenAI's form: a whole, or chunk by chunk."""

    def __init__(self, body: ChatRequest | TextRequest, model: str) -> None:
        self._chat = isinstance(body, ChatRequest)
        self._show_energy = body.show_energy
        self._common: dict[str, Any] = {
            "id": f"{'chatcmpl' if self._chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": "chat.completion" if self._chat else "text_completion",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, completions: Sequence[Completion]) -> dict[str, Any]:
        choices = [self._choice(i, completion.answer.text, completion) for i, completion in enumerate(completions)]
        return {**self._common, "choices": choices, "usage": usage(completions)}

    def start(self, index: int) -> dict[str, Any]:
        """A chat's first chunk, which says who speaks."""
        return self._chunk({"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None})

    def piece(self, index: int, text: str) -> dict[str, Any]:
        if self._chat:
            return self._chunk({"index": index, "delta": {"content": text}, "finish_reason": None})
        return self._chunk({"index": index, "text": text, "logprobs": None, "finish_reason": None})

    def end(self, index: int, completion: Completion) -> dict[str, Any]:
        if self._chat:
            choice = {"index": index, "delta": {}, "finish_reason": completion.finish, **self._energies(completion)}
            return self._chunk(choice)
        return self._chunk(self._choice(index, "", completion))

    def counts(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """The last chunk, when it was asked for."""
        return {**self._chunk(None), "usage": usage(completions)}

    def _chunk(self, choice: dict[str, Any] | None) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        return {**self._common, "object": kind, "choices": [] if choice is None else [choice]}

    def _choice(self, index: int, text: str, completion: Completion) -> dict[str, Any]:
        said = {"message": {"role": "assistant", "content": text, "refusal": None}} if self._chat else {"text": text}
        return {
            "index": index,
            **said,
            "logprobs": None,
            "finish_reason": completion.finish,
            **self._energies(completion),
        }

    def _energies(self, completion: Completion) -> dict[str, Any]:
        if not self._show_energy:
            return {}
        numbers = {name: json_number(getattr(completion.answer, name)) for name in ("energy", "score", "threshold")}
        return {"d2": {"refused": completion.answer.refused, **numbers}}


def json_number(value: float | None) -> float | None:
    """None for what is no number: JSON has no NaN and no infinity."""
    return value if value is not None and math.isfinite(value) else None


def usage(completions: Sequence[Completion]) -> dict[str, int]:
    """Tokens read and generated; a refused answer counts as far as it was generated."""
    read, made = sum(done.n_prompt for done in completions), sum(done.answer.n_tokens for done in completions)
    return {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}
