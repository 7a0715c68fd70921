"""What is asked and answered over HTTP: OpenAI's chat and text completions, without what this server does not do.

Null is as if a field were not sent, and what clients send by default is taken where it changes nothing. A field that would
change the answer and is not supported is an error, never ignored. The gate's threshold is no field.
"""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi.responses import JSONResponse
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
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


def only(*neutral: Any) -> BeforeValidator:
    """For a field that is taken with these values alone, because they change nothing. 0 is 0.0, and not false."""
    said = " or ".join(json.dumps(one) for one in neutral)

    def check(value: Any) -> Any:
        if not any(isinstance(value, bool) == isinstance(one, bool) and value == one for one in neutral):
            raise ValueError(f"only {said} is supported here")
        return value

    return BeforeValidator(check)


def _listed(given: Any) -> Any:
    if not isinstance(given, (str, list)):
        raise ValueError("should be a text or a list of texts")
    return [given] if isinstance(given, str) else given


def _parted(content: Any) -> Any:
    if not isinstance(content, (str, list)):
        raise ValueError("should be a text or a list of parts that are text")
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


_OWN_WORDS = {"missing": "is missing", "model_attributes_type": "should be an object"}
Text = Annotated[str, AfterValidator(_whole)]
Stop = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_whole)]


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


def unreadable(problems: Sequence[Mapping[str, Any]], body: Any) -> ApiError:
    """What pydantic found wrong with a body, the first of it, without the value that was sent."""
    first = problems[0]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not valid JSON: {first['ctx']['error']}", code="invalid_json")
    field = written_field(first["loc"][1:], body).encode(errors="replace").decode()[:_SHOWN]
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"{field} is not a field that this server knows", code="unknown_parameter", param=field)
    said = _OWN_WORDS.get(first["type"], first["msg"].removeprefix("Value error, "))
    return ApiError(400, f"{field or 'the body'}: {said}", code="invalid_value", param=field or None)


def written_field(place: Sequence[int | str], body: Any) -> str:
    """A problem's place as the client wrote it (`messages[0].content`): what is not in the body names a type of pydantic's,
    except at the end of a mapping, where a field is missing.
    """
    field, here = "", body
    for part in place:
        if isinstance(here, dict) and (part in here or part == place[-1]):
            field, here = f"{field}.{part}" if field else str(part), here.get(part)
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            field, here = f"{field}[{part}]", here[part]
    return field


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        return {key: value for key, value in given.items() if value is not None} if isinstance(given, dict) else given


class TextPart(_Strict):
    """A part of a message that is a list of parts. Marks for a prompt cache change nothing."""

    type: Literal["text"]
    text: Text
    cache_control: dict[str, Any] | None = None
    prompt_cache_breakpoint: dict[str, Any] | None = None
    annotations: list[Any] | None = None


class ChatMessage(_Strict):
    """A turn. Beside role and content stands what an answer has that is sent back whole; it changes nothing."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[list[TextPart], BeforeValidator(_parted)]
    name: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    tool_calls: Annotated[Any, only([])] = None
    reasoning_content: Annotated[Any, only("")] = None
    provider_specific_fields: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _refusal_alone(cls, given: Any) -> Any:
        """OpenAI's own refusals have no content; what was said is the refusal."""
        alone = isinstance(given, dict) and given.get("role") == "assistant" and given.get("content") is None
        return {**given, "content": given.get("refusal")} if alone else given

    def message(self) -> Message:
        return Message("system" if self.role == "developer" else self.role, "".join(part.text for part in self.content))


class StreamOptions(_Strict):
    """How a stream ends: with or without a chunk of counts."""

    include_usage: bool | None = None
    include_obfuscation: Annotated[Any, only(False)] = None
    continuous_usage_stats: Annotated[Any, only(False)] = None


class _Completion(_Strict):
    """What both kinds of request have. `show_energy`: energy, score and threshold with every choice (not OpenAI's).

    `user` to `prompt_cache_retention` are notes for whoever serves and for models that think: nothing here reads them.
    """

    model: str | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = None
    stop: Annotated[list[Stop], Field(max_length=4), BeforeValidator(_listed)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    show_energy: bool = False

    user: str | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None

    n: Annotated[Any, only(1)] = None
    best_of: Annotated[Any, only(1)] = None
    presence_penalty: Annotated[Any, only(0)] = None
    frequency_penalty: Annotated[Any, only(0)] = None
    repetition_penalty: Annotated[Any, only(1)] = None
    length_penalty: Annotated[Any, only(1)] = None
    logit_bias: Annotated[Any, only({})] = None
    top_k: Annotated[Any, only(0, -1)] = None
    min_p: Annotated[Any, only(0)] = None
    min_tokens: Annotated[Any, only(0)] = None
    ignore_eos: Annotated[Any, only(False)] = None
    use_beam_search: Annotated[Any, only(False)] = None
    skip_special_tokens: Annotated[Any, only(True)] = None
    logprobs: Annotated[Any, only(False)] = None
    store: Annotated[Any, only(False)] = None

    @property
    def longest(self) -> int | None:
        """The longest answer asked for, in tokens."""
        return self.max_tokens

    @property
    def stops(self) -> tuple[str, ...]:
        return tuple(self.stop or ())

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
    reasoning_effort: str | None = None
    verbosity: str | None = None
    parallel_tool_calls: bool | None = None

    top_logprobs: Annotated[Any, only(0)] = None
    tools: Annotated[Any, only([])] = None
    tool_choice: Annotated[Any, only("none", "auto")] = None
    functions: Annotated[Any, only([])] = None
    function_call: Annotated[Any, only("none", "auto")] = None
    response_format: Annotated[Any, only({"type": "text"})] = None
    modalities: Annotated[Any, only(["text"])] = None

    @property
    def asked_in(self) -> str:
        """The field that holds the prompt."""
        return "messages"

    @property
    def longest(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    def prompts(self) -> list[tuple[Message, ...]]:
        """The conversation. Raises `ApiError` unless it ends with something that the user says."""
        messages = tuple(message.message() for message in self.messages)
        if messages[-1].role != "user" or not messages[-1].content.strip():
            said = "messages: the last one should be the user's, and not empty"
            raise ApiError(400, said, code="invalid_value", param="messages")
        return [messages]


class TextRequest(_Completion):
    """`POST /v1/completions`. Each prompt is asked as the user's turn: that is what the gate was calibrated for."""

    prompt: Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS), BeforeValidator(_listed)]
    echo: Annotated[Any, only(False)] = None
    suffix: Annotated[Any, only("")] = None

    @property
    def asked_in(self) -> str:
        """The field that holds the prompts."""
        return "prompt"

    def prompts(self) -> list[tuple[Message, ...]]:
        """Each prompt as a conversation of one turn. Raises `ApiError` for an empty one."""
        if not all(text.strip() for text in self.prompt):
            raise ApiError(400, "prompt: one is empty", code="invalid_value", param="prompt")
        return [(Message("user", text),) for text in self.prompt]


class Reply:
    """The answers to one request in OpenAI's form: a whole, or chunk by chunk. `refusal_tokens`: as in `told_tokens`."""

    def __init__(self, body: ChatRequest | TextRequest, model: str, refusal_tokens: Mapping[str, int] | None = None) -> None:
        self._refusal_tokens = refusal_tokens
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
        return {**self._common, "choices": choices, "usage": usage(completions, self._refusal_tokens)}

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
        return {**self._chunk(None), "usage": usage(completions, self._refusal_tokens)}

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


def usage(completions: Sequence[Completion], refusal_tokens: Mapping[str, int] | None = None) -> dict[str, int]:
    """Tokens read and generated; what `told_tokens` says of each."""
    read = sum(done.n_prompt for done in completions)
    made = sum(told_tokens(done, refusal_tokens) for done in completions)
    return {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}


def told_tokens(completion: Completion, refusal_tokens: Mapping[str, int] | None) -> int:
    """The generated tokens that a client is told of. A refused answer counts as far as it was generated; where the lengths of
    the refusals are given, as its refusal does, so that the count does not tell at which token the score passed the threshold.
    """
    answer = completion.answer
    return answer.n_tokens if refusal_tokens is None or not answer.refused else refusal_tokens.get(answer.text, 0)
