"""OpenAI's own client gets what the guarded model says, whole and streamed, alone and together with others."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from openai import OpenAI

from d2unlearn.generation.guarded import Answer, GuardedModel
from gate.conftest import at
from generation.conftest import Halves

from .conftest import NAME, Served, serving, slowed, until


@pytest.fixture(scope="module")
def answers(split: Halves) -> list[Answer]:
    """What each prompt is answered alone."""
    return [split.guarded.answer([prompt])[0] for prompt in split.prompts]


@pytest.fixture
def client(served: Served) -> Any:
    with served.client() as made:
        yield made


def ask(client: OpenAI, text: str, **options: Any) -> Any:
    return client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": text}], **options)


def test_the_client_gets_the_guarded_models_answers_and_refusals(client: OpenAI, split: Halves, answers: list[Answer]) -> None:
    assert {answer.refused for answer in answers} == {True, False}
    for prompt, ids, answer in zip(split.prompts, split.ids, answers, strict=True):
        got = ask(client, prompt, extra_body={"show_energy": True})
        (choice,) = got.choices
        assert (got.object, got.model, choice.message.role) == ("chat.completion", NAME, "assistant")
        assert choice.message.content == answer.text
        assert (choice.finish_reason == "content_filter") == answer.refused
        assert (got.usage.prompt_tokens, got.usage.completion_tokens) == (len(ids), answer.n_tokens)
        assert got.usage.total_tokens == len(ids) + answer.n_tokens
        assert choice.d2["refused"] == answer.refused
        assert choice.d2["energy"] == pytest.approx(answer.energy, abs=1e-4)
        assert choice.d2["score"] == pytest.approx(answer.score, abs=1e-4)
        assert choice.d2["threshold"] == split.guarded.gate.threshold  # type: ignore[union-attr]


def test_energies_are_shown_only_when_asked_for(client: OpenAI, served: Served, split: Halves) -> None:
    assert not hasattr(ask(client, split.prompts[0]).choices[0], "d2")
    with serving(split.guarded, hide_energy=True) as silent:
        refused = silent.chat(split.prompts[0], show_energy=True)
        assert (refused.status, refused.error["code"]) == (403, "energies_hidden")
        assert silent.chat(split.prompts[0], show_energy=False).status == 200


def test_a_stream_says_the_same_and_leaks_nothing_that_the_early_looks_refuse(
    client: OpenAI, split: Halves, answers: list[Answer]
) -> None:
    seen, most_pieces = set(), 0
    for prompt, answer in zip(split.prompts, answers, strict=True):
        chunks = list(ask(client, prompt, stream=True, stream_options={"include_usage": True}))
        assert {chunk.id for chunk in chunks} == {chunks[0].id}
        assert chunks[0].choices[0].delta.role == "assistant"
        *said, end, usage = chunks
        text = "".join(chunk.choices[0].delta.content or "" for chunk in said)
        assert (end.choices[0].finish_reason == "content_filter") == answer.refused
        assert (usage.choices, usage.usage.completion_tokens) == ([], answer.n_tokens)
        if not answer.refused:
            assert text == answer.text
            most_pieces = max(most_pieces, len(said) - 1)
        elif answer.n_tokens < split.guarded.gate.score.lookahead:  # type: ignore[union-attr]
            assert text == answer.text
            seen.add("early")
        else:
            assert text.endswith(f"\n{answer.text}")
            raw = split.guarded.answer([prompt], raw=True)[0].text
            assert raw.startswith(text.removesuffix(f"\n{answer.text}"))
            seen.add("late")
    assert seen == {"early", "late"}
    assert most_pieces >= 5


def test_a_stream_held_back_for_long_enough_shows_nothing_of_a_late_refusal(split: Halves, answers: list[Answer]) -> None:
    with serving(split.guarded, hold_back=12) as behind, behind.client() as client:
        for prompt, answer in zip(split.prompts, answers, strict=True):
            pieces = [chunk.choices[0].delta.content or "" for chunk in ask(client, prompt, stream=True)]
            assert "".join(pieces) == answer.text


def test_text_completions_are_asked_as_the_users_turn_and_come_in_order(
    client: OpenAI, split: Halves, answers: list[Answer]
) -> None:
    got = client.completions.create(model=NAME, prompt=split.prompts)
    assert got.object == "text_completion"
    assert [choice.index for choice in got.choices] == list(range(len(answers)))
    assert [choice.text for choice in got.choices] == [answer.text for answer in answers]
    assert [choice.finish_reason == "content_filter" for choice in got.choices] == [answer.refused for answer in answers]
    assert got.usage is not None
    assert got.usage.prompt_tokens == sum(map(len, split.ids))
    assert got.usage.completion_tokens == sum(answer.n_tokens for answer in answers)
    said: dict[int, str] = {}
    ends: dict[int, str] = {}
    for chunk in client.completions.create(model=NAME, prompt=split.prompts[:3], stream=True):
        choice = chunk.choices[0]
        said[choice.index] = said.get(choice.index, "") + choice.text
        ends |= {choice.index: choice.finish_reason} if choice.finish_reason else {}
    for index, answer in enumerate(answers[:3]):
        assert said[index].endswith(answer.text)
        assert (ends[index] == "content_filter") == answer.refused


def test_requests_that_come_together_share_batches_and_change_no_answer(split: Halves, answers: list[Answer]) -> None:
    """Whole and streamed, with limits of their own, in one batch: each is what it is alone."""

    def one(place: int) -> tuple[str, str, int]:
        index, limit = place % len(split.prompts), 3 + place % 10
        with running.client() as client:
            if place % 3:
                got = ask(client, split.prompts[index], max_tokens=limit)
                return got.choices[0].message.content, got.choices[0].finish_reason, got.usage.completion_tokens
            options = {"include_usage": True}
            *said, end, usage = ask(client, split.prompts[index], max_tokens=limit, stream=True, stream_options=options)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in said)
            return text, end.choices[0].finish_reason, usage.usage.completion_tokens

    def alone(place: int) -> Answer:
        (answer,) = split.guarded.answer([split.prompts[place % len(split.prompts)]], max_new_tokens=3 + place % 10)
        return answer

    expected = [alone(place) for place in range(32)]
    with serving(split.guarded, batch_size=8) as running, slowed(split.guarded.model, 0.005), ThreadPoolExecutor(16) as pool:
        got = list(pool.map(one, range(32)))
        page = running.send("/metrics").body.decode()
    for (text, finish, n_tokens), answer in zip(got, expected, strict=True):
        assert text == answer.text or (answer.refused and text.endswith(f"\n{answer.text}"))
        assert (finish == "content_filter", n_tokens) == (answer.refused, answer.n_tokens)
    batches = float(re.search(r"^d2_batch_size_count (\S+)$", page, re.MULTILINE)[1])  # type: ignore[index]
    assert re.search(r"^d2_batch_size_sum 32.0$", page, re.MULTILINE)
    assert batches <= 16


def test_limits_and_stop_texts_end_an_answer(client: OpenAI, served: Served, split: Halves, answers: list[Answer]) -> None:
    index = next(i for i, answer in enumerate(answers) if not answer.refused and answer.n_tokens > 4)
    prompt, text = split.prompts[index], answers[index].text
    short = ask(client, prompt, max_tokens=2)
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 2)
    assert text.startswith(short.choices[0].message.content)
    middle = text.split()[2]
    for streamed in (False, True):
        got = ask(client, prompt, stop=[middle, "no such text"], stream=streamed)
        if streamed:
            chunks = list(got)
            said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            finish = chunks[-1].choices[0].finish_reason
        else:
            said, finish = got.choices[0].message.content, got.choices[0].finish_reason
        assert said == text[: text.index(middle)].strip()
        assert finish == "stop"
    assert ask(client, prompt, max_completion_tokens=1).usage.completion_tokens <= 1
    assert served.healthy()


def test_sampling_with_a_seed_is_repeatable_whatever_comes_beside_it(split: Halves) -> None:
    free = GuardedModel(split.guarded.model, split.guarded.tokenizer, at(split.guarded.gate, 1e9))  # type: ignore[arg-type]
    drawn = {"temperature": 1.5, "top_p": 0.9}
    with serving(free) as running, running.client() as client:
        greedy = [ask(client, prompt).choices[0].message.content for prompt in split.prompts[:4]]
        alone = [ask(client, prompt, seed=7, **drawn).choices[0].message.content for prompt in split.prompts[:4]]
        with ThreadPoolExecutor(8) as pool:
            asked = [(prompt, seed) for prompt in split.prompts[:4] for seed in (7, 8)]
            beside = list(pool.map(lambda a: ask(client, a[0], seed=a[1], **drawn).choices[0].message.content, asked))
            unseeded = list(pool.map(lambda _: ask(client, split.prompts[0], **drawn).choices[0].message.content, range(8)))
    assert beside[::2] == alone
    assert beside[1::2] != alone
    assert alone != greedy
    assert len(set(unseeded)) > 1


def test_models_are_listed_and_others_are_not_found(client: OpenAI, served: Served) -> None:
    (only,) = client.models.list().data
    assert (only.id, only.owned_by) == (NAME, "d2unlearn")
    assert only.guarded is True  # type: ignore[attr-defined]
    assert "20% of requests" in only.guarantee  # type: ignore[attr-defined]
    assert client.models.retrieve(NAME).id == NAME
    for call in (lambda: client.models.retrieve("other"), lambda: client.completions.create(model="other", prompt="w1")):
        with pytest.raises(openai.NotFoundError, match="the model here is tiny"):
            call()
    assert served.send("/v1/nothing").error["type"] == "not_found_error"
    assert served.send("/v1/models", {}, method="POST").status == 405


def buckets(page: dict[str, float], name: str) -> dict[float, float]:
    """A histogram of the metrics page: how many values are at most each edge."""
    found = {re.fullmatch(rf'{name}_bucket{{le="(.+)"}}', line): value for line, value in page.items()}
    return {float(edge[1]): value for edge, value in found.items() if edge}


def test_health_and_metrics_tell_what_was_done(split: Halves, answers: list[Answer]) -> None:
    with serving(split.guarded) as running, running.client() as client:
        assert running.send("/health").json == {"status": "ok", "model": NAME, "guarded": True, "waiting": 0}
        for prompt in split.prompts:
            ask(client, prompt)
        running.send("/v1/chat/completions", "{")
        running.send("/some/path/of/a/client")
        until(lambda: "other" in running.send("/metrics").body.decode())
        page = running.send("/metrics").body.decode()
    found = {name: float(value) for name, value in re.findall(r"^(\S+) (\S+)$", page, re.MULTILINE)}
    refused = [answer for answer in answers if answer.refused]
    assert found['d2_requests_total{path="/v1/chat/completions",status="200"}'] == len(answers)
    assert found['d2_requests_total{path="/v1/chat/completions",status="400"}'] == 1
    assert found['d2_requests_total{path="other",status="404"}'] == 1
    assert found["d2_refusals_total"] == len(refused)
    assert found['d2_answers_total{finish="content_filter"}'] == len(refused)
    assert found["d2_energy_nats_count"] == len(answers)
    for edge, count in buckets(found, "d2_energy_nats").items():
        assert count == sum(answer.energy <= edge for answer in answers)
    threshold = found["d2_threshold"]
    assert threshold == pytest.approx(split.guarded.gate.threshold)  # type: ignore[union-attr]
    scores = buckets(found, "d2_score")
    assert scores[min(scores, key=lambda edge: abs(edge - threshold))] == len(answers) - len(refused)
    assert found['d2_tokens_total{kind="prompt"}'] == sum(map(len, split.ids))
    assert found['d2_tokens_total{kind="completion"}'] == sum(answer.n_tokens for answer in answers)
    assert found["d2_gate_failures_total"] == 0
    assert found['d2_request_seconds_count{path="/v1/chat/completions"}'] == len(answers) + 1


def test_a_key_is_asked_for_everywhere_but_at_health(split: Halves) -> None:
    with serving(split.guarded, keys=["first", "second"]) as running:
        for key in ("first", "second"):
            with running.client(key) as client:
                assert ask(client, split.prompts[0]).usage.total_tokens >= len(split.ids[0])
        with running.client("third") as client, pytest.raises(openai.AuthenticationError):
            ask(client, split.prompts[0])
        for given in ({}, {"Authorization": "first"}, {"Authorization": "Basic first"}, {"Authorization": "Bearer "}):
            for path in ("/v1/models", "/metrics"):
                turned_away = running.send(path, headers=given)
                assert (turned_away.status, turned_away.error["code"]) == (401, "invalid_api_key")
        assert running.healthy()


def test_raw_answers_say_that_nothing_guards_them(served: Served, split: Halves) -> None:
    assert served.chat(split.prompts[0]).headers["x-d2-gate"] == "on"
    raw = GuardedModel(split.guarded.model, split.guarded.tokenizer, None)
    with serving(raw, raw=True) as running, running.client() as client:
        for sent in (running.chat(split.prompts[0]), running.send("/health"), running.send("/nowhere"), running.chat("")):
            assert sent.headers["x-d2-gate"] == "off; raw answers, nothing guards them"
        got = client.chat.completions.create(
            model="tiny:raw",
            messages=[{"role": "user", "content": split.prompts[int(split.refused.argmax())]}],
            max_tokens=12,
            extra_body={"show_energy": True},
        )
        assert got.model == "tiny:raw"
        assert got.choices[0].finish_reason in ("stop", "length")
        assert (got.choices[0].d2["score"], got.choices[0].d2["threshold"]) == (None, None)  # type: ignore[attr-defined]
        assert client.models.list().data[0].guarded is False  # type: ignore[attr-defined]
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="tiny", prompt="w1")
