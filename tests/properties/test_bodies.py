"""Bodies of requests: any JSON is a request that can be asked, or an error of OpenAI's form that names a field of the body."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as draw
from pydantic import ValidationError

from d2unlearn.schema import Message
from d2unlearn.serving.openai_api import ApiError, ChatRequest, TextRequest, error_body, unreadable

from .values import json_values, odd_text

KINDS = {"chat": ChatRequest, "text": TextRequest}
NAMES = sorted({*ChatRequest.model_fields, *TextRequest.model_fields, "threshold", "gate", ""})
contents = (
    odd_text | draw.lists(draw.fixed_dictionaries({"type": draw.just("text"), "text": odd_text}), max_size=3) | json_values
)
turns = draw.lists(
    draw.dictionaries(draw.sampled_from(("role", "content", "refusal", "name", "tool_calls")), contents, max_size=4)
    | draw.fixed_dictionaries({"role": draw.sampled_from(("user", "assistant", "system", "developer")), "content": contents}),
    max_size=4,
)
bodies = draw.dictionaries(draw.sampled_from(NAMES), json_values, max_size=4).flatmap(
    lambda others: draw.fixed_dictionaries({"messages": turns | json_values, "prompt": odd_text | json_values}).map(
        lambda asked: {**asked, **others}
    )
)


@pytest.mark.parametrize("kind", KINDS)
@given(body=bodies | json_values, alone=draw.booleans())
@example(body={"messages": [{"role": "assistant"}]}, alone=True)
@example(body={"prompt": ["\ud83d"]}, alone=True)
def test_any_json_is_a_request_or_an_error_that_names_its_field(kind: str, body: Any, alone: bool) -> None:
    other = "prompt" if kind == "chat" else "messages"
    if alone and isinstance(body, dict):
        body = {name: value for name, value in body.items() if name != other}
    try:
        request = KINDS[kind].model_validate(body)
        prompts = request.prompts()
    except ValidationError as error:
        said = unreadable([{**each, "loc": ("body", *each["loc"])} for each in error.errors()], body)
        assert_named(said, body)
    except ApiError as error:
        assert_named(error, body)
    else:
        assert all(isinstance(message, Message) for prompt in prompts for message in prompt)
        assert all(prompt[-1].role == "user" and prompt[-1].content.strip() for prompt in prompts)
        assert request.longest is None or request.longest >= 1
        assert request.sampling is None or 0 < request.sampling.temperature <= 2
        assert all(request.stops)


def assert_named(error: ApiError, body: Any) -> None:
    """A 400 with a sentence that can be sent, and a field that begins with a name in the body or one that it lacks."""
    sent = json.loads(json.dumps(error_body(error.status_code, str(error.detail), error.code, error.param)).encode())["error"]
    assert error.status_code == 400
    assert sent["message"].encode()
    if sent["param"] is not None:
        first = sent["param"].partition(".")[0].partition("[")[0]
        known = {*NAMES, *(str(name)[:200] for name in body)} if isinstance(body, dict) else set()
        assert first in known or any(str(name).startswith(first) for name in known) or "." in "".join(map(str, body))
