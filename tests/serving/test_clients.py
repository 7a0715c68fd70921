"""What OpenAI's clients send by default is answered as if it were not sent; what is turned down is named as it was written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_type_hints

import openai
import pytest
from openai import OpenAI
from openai.types import completion_create_params as text_params
from openai.types.chat import completion_create_params as chat_params

from d2unlearn.generation.guarded import Answer, GuardedModel
from d2unlearn.serving.openai_api import ChatRequest, TextRequest, written_field
from gate.conftest import at
from generation.conftest import Halves

from .conftest import NAME, Served, serving

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
NEUTRAL: dict[str, list[Any]] = {
    "parallel_tool_calls": [True, False],
    "tools": [[]],
    "tool_choice": ["none", "auto"],
    "functions": [[]],
    "function_call": ["none", "auto"],
    "service_tier": ["auto", "default", "flex"],
    "reasoning_effort": ["none", "low", "medium", "high"],
    "verbosity": ["low", "medium", "high"],
    "modalities": [["text"]],
    "metadata": [{}, {"run": "7", "n": 7}],
    "response_format": [{"type": "text"}],
    "top_logprobs": [0],
}
NEUTRAL_IN_BOTH: dict[str, list[Any]] = {
    "n": [1],
    "best_of": [1],
    "store": [False],
    "logprobs": [False],
    "presence_penalty": [0, 0.0],
    "frequency_penalty": [0, 0.0],
    "repetition_penalty": [1, 1.0],
    "length_penalty": [1],
    "logit_bias": [{}],
    "top_k": [0, -1],
    "top_p": [1, 1.0, 0.3],
    "temperature": [0, 0.0],
    "min_p": [0],
    "min_tokens": [0],
    "ignore_eos": [False],
    "use_beam_search": [False],
    "skip_special_tokens": [True],
    "stop": [[]],
    "seed": [0, -3, 2**40],
    "stream": [False],
    "stream_options": [{}, {"include_usage": True}, {"include_usage": None, "include_obfuscation": False}],
    "user": ["somebody", ""],
    "safety_identifier": ["somebody"],
    "prompt_cache_key": ["key"],
    "prompt_cache_retention": ["24h"],
}
NEUTRAL_IN_TEXT: dict[str, list[Any]] = {"suffix": [""], "echo": [False]}
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"presence_penalty": 0.1}, "presence_penalty", "only 0 is supported here"),
    ({"frequency_penalty": False}, "frequency_penalty", "only 0 is supported here"),
    ({"repetition_penalty": 1.1}, "repetition_penalty", "only 1 is supported here"),
    ({"top_k": 40}, "top_k", "only 0 or -1 is supported here"),
    ({"n": 2}, "n", "only 1 is supported here"),
    ({"logit_bias": {"5": 1}}, "logit_bias", "only {} is supported here"),
    ({"store": True}, "store", "only false is supported here"),
    ({"logprobs": True}, "logprobs", "only false is supported here"),
    ({"top_logprobs": 1}, "top_logprobs", "only 0 is supported here"),
    ({"tools": [{"type": "function"}]}, "tools", "only [] is supported here"),
    ({"tool_choice": "required"}, "tool_choice", 'only "none" or "auto" is supported here'),
    ({"tool_choice": {"type": "function"}}, "tool_choice", 'only "none" or "auto" is supported here'),
    ({"modalities": ["text", "audio"]}, "modalities", 'only ["text"] is supported here'),
    ({"response_format": {"type": "json_object"}}, "response_format", 'only {"type": "text"} is supported here'),
    ({"stop": 5}, "stop", "should be a text or a list of texts"),
    ({"stop": ["a", 5]}, "stop[1]", "Input should be a valid string"),
    ({"stop": ""}, "stop", "String should have at least 1 character"),
    ({"stop": "\ud83d"}, "stop", "Input should be a valid string, unable to parse raw data as a unicode string"),
    ({"stop": list("abcde")}, "stop", "List should have at most 4 items after validation, not 5"),
    ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage", "Input should be a valid boolean"),
    ({"max_tokens": "5"}, "max_tokens", "Input should be a valid integer"),
    ({"max_tokens": 0}, "max_tokens", "Input should be greater than or equal to 1"),
    ({"temperature": True}, "temperature", "Input should be a valid number"),
    ({"messages": None}, "messages", "is missing"),
    ({"messages": "w1"}, "messages", "Input should be a valid list"),
    ({"messages": [5]}, "messages[0]", "should be an object"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "is missing"),
    ({"messages": [{"role": "assistant", "content": None}]}, "messages[0].content", "is missing"),
    (
        {"messages": [{"role": "user", "content": 5}]},
        "messages[0].content",
        "should be a text or a list of parts that are text",
    ),
    (
        {"messages": [{"role": "user", "content": "w1"}, {"role": "user", "content": [{"type": "text", "text": 5}]}]},
        "messages[1].content[0].text",
        "Input should be a valid string",
    ),
    (
        {"messages": [{"role": "user", "content": "\ud83d"}]},
        "messages[0].content",
        "half of a surrogate pair is no character",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[0].content[0].type",
        "Input should be 'text'",
    ),
    (
        {"messages": [{"role": "assistant", "content": "", "tool_calls": [{"id": "x"}]}]},
        "messages[0].tool_calls",
        "only [] is supported here",
    ),
    (
        {"messages": [{"role": "tool", "content": "w1"}]},
        "messages[0].role",
        "Input should be 'system', 'developer', 'user' or 'assistant'",
    ),
]


@pytest.fixture(scope="module")
def plain(split: Halves) -> tuple[Answer, Answer]:
    """What an answered and a refused prompt get without any of these fields."""
    answered, refused = split.guarded.answer([split.prompts[i] for i in (split.refused.argmin(), split.refused.argmax())])
    assert (answered.refused, refused.refused) == (False, True)
    return answered, refused


@pytest.fixture
def client(served: Served) -> Iterator[OpenAI]:
    with served.client() as made:
        yield made


@pytest.fixture(scope="module")
def prompts(split: Halves) -> tuple[str, str]:
    return split.prompts[int(split.refused.argmin())], split.prompts[int(split.refused.argmax())]


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def meant(body: ChatRequest | TextRequest) -> tuple[Any, ...]:
    """All that a request tells the engine."""
    return body.prompts(), body.sampling, body.longest, body.stops, body.show_energy


def test_each_neutral_value_is_as_if_it_were_not_sent() -> None:
    kinds: tuple[tuple[type[ChatRequest] | type[TextRequest], dict[str, Any], dict[str, list[Any]]], ...] = (
        (ChatRequest, {"messages": user("w1 w2")}, NEUTRAL | NEUTRAL_IN_BOTH),
        (TextRequest, {"prompt": "w1 w2"}, NEUTRAL_IN_TEXT | NEUTRAL_IN_BOTH),
    )
    for kind, asked, neutral in kinds:
        for field, values in neutral.items():
            for value in values:
                assert meant(kind.model_validate({**asked, field: value})) == meant(kind.model_validate(asked)), (field, value)


def test_neutral_values_together_change_no_answer(
    served: Served, plain: tuple[Answer, Answer], prompts: tuple[str, str]
) -> None:
    for path, neutral in ((CHAT, NEUTRAL | NEUTRAL_IN_BOTH), (TEXT, NEUTRAL_IN_TEXT | NEUTRAL_IN_BOTH)):
        for prompt, expected in zip(prompts, plain, strict=True):
            fields = {field: values[-1] for field, values in neutral.items()} | {"max_tokens": 2**63}
            asked = {"prompt": prompt} if path == TEXT else {"messages": user(prompt)}
            (choice,) = served.send(path, {**asked, **fields}).json["choices"]
            text = choice["text"] if path == TEXT else choice["message"]["content"]
            assert (text, choice["finish_reason"] == "content_filter") == (expected.text, expected.refused)


def test_null_is_as_if_it_were_not_sent_for_every_field_that_openais_client_knows(
    served: Served, plain: tuple[Answer, Answer], prompts: tuple[str, str]
) -> None:
    for path, own, kind in (
        (CHAT, {"messages": user(prompts[0])}, chat_params.CompletionCreateParamsNonStreaming),
        (TEXT, {"prompt": prompts[0]}, text_params.CompletionCreateParamsNonStreaming),
    ):
        nulls = dict.fromkeys(get_type_hints(kind), None)
        assert {"temperature", "stop", "logit_bias", "stream", "seed", "n"} <= nulls.keys()
        answered = served.send(path, {**nulls, "show_energy": None, "threshold": None, **own})
        (choice,) = answered.json["choices"]
        assert (choice["text"] if path == TEXT else choice["message"]["content"]) == plain[0].text


def test_openais_client_sends_its_neutral_values_itself(
    client: OpenAI, plain: tuple[Answer, Answer], prompts: tuple[str, str]
) -> None:
    got = client.chat.completions.create(
        model=NAME,
        messages=[{"role": "user", "content": prompts[0]}],
        tool_choice="auto",
        tools=[],
        parallel_tool_calls=False,
        service_tier="auto",
        reasoning_effort="medium",
        verbosity="medium",
        modalities=["text"],
        metadata={"run": "1"},
        store=False,
        top_logprobs=0,
        logit_bias=None,
        stop=None,
        max_tokens=100_000,
        extra_body={"repetition_penalty": 1.0, "top_k": -1},
    )
    assert got.choices[0].message.content == plain[0].text
    text = client.completions.create(model=NAME, prompt=prompts[1], suffix="", best_of=1, logprobs=None, max_tokens=2048)
    assert (text.choices[0].text, text.choices[0].finish_reason) == (plain[1].text, "content_filter")


def test_an_answer_is_sent_back_whole_and_read_as_its_text(
    client: OpenAI, split: Halves, plain: tuple[Answer, Answer], prompts: tuple[str, str]
) -> None:
    """As the client's own object, as its dump with every null, and as other clients keep it."""
    answer = client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": prompts[0]}]).choices[0].message
    earlier = {"role": "assistant", "content": answer.content}

    def asked(message: Any) -> Any:
        messages = [*user(prompts[0]), message, *user("w3 w4")]
        got = client.chat.completions.create(model=NAME, messages=messages)  # type: ignore[arg-type]
        return got.choices[0].message.content, got.usage

    expected = asked(earlier)
    dumped = answer.model_dump()
    assert {name for name, value in dumped.items() if value is None} >= {"refusal", "audio", "function_call", "tool_calls"}
    kept = {"tool_calls": [], "annotations": [], "reasoning_content": "", "provider_specific_fields": {"refusal": None}}
    parts = [{"type": "text", "text": answer.content, "annotations": []}]
    for message in (answer, dumped, {**dumped, "parsed": None}, {**earlier, **kept}, {**earlier, "content": parts}):
        assert asked(message) == expected
    assert asked({"role": "assistant", "content": None, "refusal": answer.content}) == expected
    other = asked({**earlier, "content": "w1 w1 w1 w1 w1 w1"})
    assert other[1] != expected[1]


def test_parts_with_marks_for_a_cache_are_read_as_one_text(
    served: Served, plain: tuple[Answer, Answer], prompts: tuple[str, str]
) -> None:
    for prompt, expected in zip(prompts, plain, strict=True):
        middle = len(prompt) // 2
        parts = [
            {"type": "text", "text": prompt[:middle], "cache_control": {"type": "ephemeral"}},
            {"type": "text", "text": prompt[middle:], "cache_control": None, "prompt_cache_breakpoint": {"mode": "explicit"}},
        ]
        answered = served.send(CHAT, {"messages": [{"role": "user", "content": parts}]}).json
        assert answered["choices"][0]["message"]["content"] == expected.text


def test_an_answer_longer_than_answers_are_here_ends_at_the_limit(split: Halves, prompts: tuple[str, str]) -> None:
    never = GuardedModel(split.guarded.model, split.guarded.tokenizer, at(split.guarded.gate, 1e9))  # type: ignore[arg-type]
    (whole,) = never.answer([prompts[0]], max_new_tokens=5)
    assert whole.n_tokens == 5
    with serving(never, max_new_tokens=5) as running, running.client() as client:
        for limit in ({"max_tokens": 6}, {"max_completion_tokens": 2**31}, {"max_completion_tokens": 6, "max_tokens": 2}):
            got = client.chat.completions.create(model=NAME, messages=user(prompts[0]), **limit)  # type: ignore[call-overload]
            assert (got.choices[0].message.content, got.choices[0].finish_reason) == (whole.text, "length")
            assert got.usage.completion_tokens == 5


@pytest.mark.parametrize(("fields", "param", "said"), REFUSED, ids=[f"{i}-{param}" for i, (_, param, _) in enumerate(REFUSED)])
def test_what_is_turned_down_is_named_as_the_client_wrote_it(
    client: OpenAI, served: Served, fields: dict[str, Any], param: str, said: str
) -> None:
    answered = served.send(CHAT, {"messages": user("w1"), **fields})
    assert answered.status == 400
    assert answered.error == {
        "message": f"{param}: {said}",
        "type": "invalid_request_error",
        "param": param,
        "code": "invalid_value",
    }


def test_the_client_shows_the_field(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="web_search_options is not a field that this server knows") as told:
        client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": "w1"}], web_search_options={})
    assert (told.value.param, told.value.code) == ("web_search_options", "unknown_parameter")
    with pytest.raises(openai.BadRequestError, match="prompt\\[1\\]") as told:
        client.completions.create(model=NAME, prompt=["w1", 5])  # type: ignore[list-item]
    assert told.value.param == "prompt[1]"


def test_a_place_is_what_the_client_wrote_without_the_names_of_types() -> None:
    body = {"messages": [{"content": [{"type": "x"}]}], "stop": "a"}
    place = ("messages", 0, "content", "list[TextPart]", 0, "TextPart", "text")
    assert written_field(place, body) == "messages[0].content[0].text"
    assert written_field(("stop", "function-after[_whole(), str]", 0), body) == "stop"
    assert written_field((), body) == ""
    assert written_field(("prompt",), body) == "prompt"
    assert written_field((0,), None) == ""
