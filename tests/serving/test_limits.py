"""What the server turns away and how it ends: limits with status codes of their own, failures as refusals, orderly stops."""

from __future__ import annotations

import json
import resource
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

from d2unlearn.config import ServeSettings
from d2unlearn.errors import ConfigError, needs_extra
from d2unlearn.gate import recorder
from d2unlearn.generation.guarded import GuardedModel
from d2unlearn.serving import middleware
from d2unlearn.serving import run as serving_run
from d2unlearn.serving.engine import Engine, EngineLimits
from d2unlearn.serving.run import listen, read_keys, service_limits
from gate.conftest import at
from generation.conftest import Halves

from .conftest import NAME, Served, serving, slowed, until

CHAT = "/v1/chat/completions"


def message(text: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **fields}


def test_prompts_and_answers_have_a_longest_length(split: Halves) -> None:
    with serving(split.guarded, max_prompt_tokens=12, max_new_tokens=6) as running:
        fitting = running.chat("w1 w2 w3 w4", max_tokens=6)
        assert (fitting.status, fitting.json["usage"]["prompt_tokens"]) == (200, 8)
        long = running.chat(" ".join(["w1"] * 9))
        assert (long.status, long.error["code"]) == (400, "context_length_exceeded")
        assert long.error["message"] == "the prompt has 13 tokens; at most 12 are read here"
        assert long.error["param"] == "messages"
        assert running.send("/v1/completions", {"prompt": " ".join(["w1"] * 9)}).error["param"] == "prompt"


def test_what_fits_the_models_context_is_found_before_anything_is_served(split: Halves) -> None:
    raw = GuardedModel(split.guarded.model, split.guarded.tokenizer, None)
    context = split.guarded.model.config.max_position_embeddings
    assert service_limits(split.guarded, ServeSettings("x")).max_prompt_tokens == context - 12
    assert service_limits(raw, ServeSettings("x")).default_new_tokens == 128
    assert service_limits(raw, ServeSettings("x", max_new_tokens=40)).default_new_tokens == 40
    for wrong in ({"max_new_tokens": context}, {"max_prompt_tokens": context - 11}):
        with pytest.raises(ConfigError, match="do not fit the model's context"):
            service_limits(split.guarded, ServeSettings("x", **wrong))


def test_a_body_is_measured_announced_or_not(split: Halves) -> None:
    with serving(split.guarded, max_body_bytes=2000) as running:
        assert running.send(CHAT, message("w1" + " " * 1900)).status == 200
        for length in ("2001", "99999999999999999999"):
            with socket.create_connection(("127.0.0.1", running.port), timeout=10) as client:
                head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                client.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode())
                assert client.recv(64).startswith(b"HTTP/1.1 413")
        with socket.create_connection(("127.0.0.1", running.port), timeout=10) as client:
            client.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
            for _ in range(3):
                client.sendall(b"3e8\r\n" + b" " * 1000 + b"\r\n")
            got = client.recv(4096)
            assert got.startswith(b"HTTP/1.1 413")
        assert running.healthy()


def test_a_body_has_to_arrive_in_time(split: Halves) -> None:
    with serving(split.guarded, timeout=0.4) as running, socket.create_connection(("127.0.0.1", running.port)) as client:
        client.settimeout(10)
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        client.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        assert client.recv(64).startswith(b"HTTP/1.1 408")
        assert running.healthy()


def test_connections_that_send_nothing_are_closed(split: Halves, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(middleware, "HEAD_SECONDS", 0.2)
    with serving(split.guarded) as running:
        silent = socket.create_connection(("127.0.0.1", running.port), timeout=10)
        trickling = socket.create_connection(("127.0.0.1", running.port), timeout=10)
        trickling.sendall(b"GET /health HTTP/1.1\r\nX-Slow: ")
        began = time.monotonic()
        for client in (silent, trickling):
            assert client.recv(64) == b""
            client.close()
        assert time.monotonic() - began < 5


def test_an_answer_has_to_be_ready_in_time_whole_or_streamed(split: Halves) -> None:
    never = GuardedModel(split.guarded.model, split.guarded.tokenizer, at(split.guarded.gate, 1e9))  # type: ignore[arg-type]
    with serving(never, timeout=1.0, max_new_tokens=400) as running:
        with slowed(never.model, 0.05):
            late = running.chat(split.prompts[0], max_tokens=400)
            assert (late.status, late.error["code"]) == (504, "timeout")
            begun = running.chat(split.prompts[0], max_tokens=400, stream=True)
            assert begun.status == 200
            events = [line.removeprefix("data: ") for line in begun.body.decode().split("\n\n") if line]
            assert json.loads(events[-1])["error"]["code"] == "timeout"
            assert "[DONE]" not in events
        until(lambda: running.service.engine.waiting == 0)
        assert running.chat(split.prompts[0], max_tokens=2).status == 200  # the engine goes on at once


def test_beyond_the_queue_requests_are_turned_away_and_the_others_answered(split: Halves) -> None:
    with serving(split.guarded, batch_size=1, queue=3) as running:
        with slowed(split.guarded.model, 0.03), ThreadPoolExecutor(16) as pool:
            got = list(pool.map(lambda i: running.chat(split.prompts[i]), range(12)))
        turned_away = [each for each in got if each.status == 503]
        assert {each.status for each in got} == {200, 503}
        assert {each.error["code"] for each in turned_away} == {"overloaded"}
        assert {each.headers["retry-after"] for each in turned_away} == {"1"}
        too_many = running.send("/v1/completions", {"prompt": ["w1"] * 4})
        assert (too_many.status, too_many.error["code"]) == (503, "overloaded")
        assert running.chat(split.prompts[0]).status == 200


def test_a_client_that_goes_away_frees_its_place(split: Halves) -> None:
    never = GuardedModel(split.guarded.model, split.guarded.tokenizer, at(split.guarded.gate, 1e9))  # type: ignore[arg-type]
    with serving(never, batch_size=1, max_new_tokens=2000) as running, slowed(never.model, 0.02):
        for stream in (False, True):
            body = json.dumps(message(split.prompts[0], max_tokens=2000, stream=stream)).encode()
            head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
            with socket.create_connection(("127.0.0.1", running.port), timeout=10) as client:
                client.sendall(f"{head}\r\n\r\n".encode() + body)
                until(lambda: running.service._calls and running.service.engine.waiting == 0)
                time.sleep(0.1)
            began = time.monotonic()
            assert running.chat(split.prompts[1], max_tokens=2).status == 200
            assert time.monotonic() - began < 10  # 2000 tokens would take 40 seconds


@contextmanager
def energies(monkeypatch: pytest.MonkeyPatch, broken: Any) -> Iterator[None]:
    """What the recorder computes is replaced."""
    with monkeypatch.context() as patched:
        patched.setattr(recorder, "free_energy", broken)
        yield


def fail(*_: Any, **__: Any) -> torch.Tensor:
    raise RuntimeError("no energy today")


def test_energies_that_cannot_be_computed_are_refusals(split: Halves, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = split.prompts[int((~split.refused).argmax())]
    refusal = split.guarded.gate.refusal(split.guarded.template.question_ids(prompt))  # type: ignore[union-attr]
    broken = [fail, *(lambda logits, *_, to=to: torch.full(logits.shape[:-1], to) for to in (torch.nan, torch.inf))]
    with serving(split.guarded) as running, running.client() as client:
        assert running.chat(prompt).json["choices"][0]["finish_reason"] != "content_filter"
        for compute in broken:
            with energies(monkeypatch, compute):
                (choice,) = running.chat(prompt, show_energy=True).json["choices"]
                assert (choice["finish_reason"], choice["message"]["content"]) == ("content_filter", refusal)
                assert (choice["d2"]["refused"], choice["d2"]["energy"], choice["d2"]["score"]) == (True, None, None)
                chunks = list(client.chat.completions.create(model=NAME, stream=True, messages=message(prompt)["messages"]))
                assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == refusal
                assert chunks[-1].choices[0].finish_reason == "content_filter"
        assert b"d2_gate_failures_total 2.0" in running.send("/metrics").body
        assert running.chat(prompt).json["choices"][0]["finish_reason"] != "content_filter"


def test_a_request_that_fails_takes_none_of_its_batch_with_it(split: Halves, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row of a batch cannot be decided: it alone is refused, the others are answered as ever."""
    free_energy = recorder.free_energy
    answered = [prompt for prompt, refused in zip(split.prompts, split.refused, strict=True) if not refused][:4]
    bad = split.guarded.template.question_ids(answered[1])
    seen: list[int] = []

    def look(module: Any, arguments: Any, given: dict[str, Any]) -> None:
        ids = given["input_ids"]
        seen[:] = [any(row[-len(bad) :] == bad for row in ids.tolist())] if ids.shape[1] > 1 else seen

    def compute(logits: torch.Tensor, *rest: Any) -> torch.Tensor:
        if seen and seen[0]:
            raise RuntimeError("this prompt breaks it")
        return free_energy(logits, *rest)

    handle = split.guarded.model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        with serving(split.guarded) as running, energies(monkeypatch, compute):
            got = running.send("/v1/completions", {"prompt": answered}).json["choices"]
    finally:
        handle.remove()
    plain = [answer.text for answer in split.guarded.answer(answered)]
    assert [choice["text"] for choice in got] == [plain[0], split.guarded.gate.refusal(bad), *plain[2:]]  # type: ignore[union-attr]
    assert [choice["finish_reason"] == "content_filter" for choice in got] == [False, True, False, False]


def test_out_of_memory_and_raw_failures_are_errors_without_an_answer(split: Halves, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("no more")

    with serving(split.guarded) as running, energies(monkeypatch, full):
        short = running.chat("w1 w2")
        assert (short.status, short.error["code"]) == (503, "out_of_memory")
    raw = GuardedModel(split.guarded.model, split.guarded.tokenizer, None)
    with serving(raw) as running:
        with energies(monkeypatch, fail):
            broken = running.chat("w1 w2")
            assert (broken.status, broken.error["code"]) == (500, "internal_error")
            assert "no energy today" not in broken.error["message"]
        assert running.chat("w1 w2").status == 200


def test_a_stop_lets_running_requests_finish(split: Halves) -> None:
    with serving(split.guarded) as running, slowed(split.guarded.model, 0.05), ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(running.chat, prompt) for prompt in split.prompts[:3]]
        until(lambda: len(running.service._calls) == 3)
        running.stop()
        answers = [each.result(timeout=20) for each in asked]
        texts = [answer.text for answer in split.guarded.answer(split.prompts[:3])]
    assert [each.json["choices"][0]["message"]["content"] for each in answers] == texts
    with pytest.raises(ConnectionError):
        running.chat("w1")


def test_a_stop_ends_with_an_error_what_does_not_finish(split: Halves) -> None:
    never = GuardedModel(split.guarded.model, split.guarded.tokenizer, at(split.guarded.gate, 1e9))  # type: ignore[arg-type]
    running_for = {"max_new_tokens": 2000, "stop_timeout": 0.5, "batch_size": 1}
    with serving(never, **running_for) as running, slowed(never.model, 0.1), ThreadPoolExecutor(4) as pool:
        whole = pool.submit(running.chat, split.prompts[0], max_tokens=2000)
        until(lambda: running.service._calls and running.service.engine.waiting == 0)
        waiting = pool.submit(running.chat, split.prompts[1], max_tokens=2000, stream=True)
        until(lambda: len(running.service._calls) == 2)
        began = time.monotonic()
        running.stop()
        for each in (whole.result(timeout=20), waiting.result(timeout=20)):
            assert (each.status, each.error["code"]) == (503, "stopping")
            assert each.headers["retry-after"] == "5"
        assert time.monotonic() - began < 10


def test_nothing_that_was_asked_or_answered_is_logged_unless_it_is_wanted(
    split: Halves, capfd: pytest.CaptureFixture[str]
) -> None:
    prompt = split.prompts[int((~split.refused).argmax())]
    (answer,) = split.guarded.answer([prompt])
    capfd.readouterr()
    with serving(split.guarded) as running:
        running.chat(prompt)
        running.send(CHAT, message(prompt, threshold=1e9))
        running.send(CHAT, json.dumps(message(prompt))[:-1])
        running.send("/v1/completions", {"prompt": [prompt], "n": prompt})
    quiet = "".join(capfd.readouterr())
    assert quiet.count("/v1/") >= 4
    assert prompt not in quiet
    assert answer.text not in quiet
    with serving(split.guarded, log_prompts=True) as running:
        running.chat(f"{prompt}\nGET /forged 200")
    told = "".join(capfd.readouterr())
    assert f"{prompt}\\nGET /forged 200" in told
    assert "\nGET /forged" not in told


def test_keys_come_from_a_file_and_addresses_are_had_or_not(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    for content, said in ((None, "cannot be read"), (b"\xff\xfe", "no text"), (b" \n\n", "holds no key")):
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(ConfigError, match=said):
            read_keys(str(file))
    file.write_text("one\n two \n")
    assert read_keys(str(file)) == (middleware.key_digest("one"), middleware.key_digest("two"))
    with listen("127.0.0.1", 0) as held:
        held.listen()
        with pytest.raises(ConfigError, match=r"cannot listen on 127\.0\.0\.1, port \d+: Address already in use"):
            listen("127.0.0.1", held.getsockname()[1])
    with pytest.raises(ConfigError, match="cannot listen on no such host"):
        listen("no such host", 80)


@pytest.mark.parametrize(
    ("limits", "set_to", "said"),
    [
        ((1024, 4096), (1200, 4096), ""),
        ((1200, 4096), None, ""),
        ((1024, -1), (1200, -1), ""),
        ((256, 1000), (1000, 1000), "note: this process may open 1000 files, and 500 connections need 1200"),
    ],
)
def test_a_server_may_open_a_file_for_every_connection(
    limits: tuple[int, int],
    set_to: tuple[int, int] | None,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda which: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda which, both: found.append(both))
    serving_run.allow_files(500)
    assert found == ([] if set_to is None else [set_to])
    told = capsys.readouterr().err
    assert told.startswith(said)
    assert bool(told) == ("give --connections 400" in told) == bool(said)


def test_a_missing_part_of_the_installation_is_named() -> None:
    with (
        pytest.raises(ConfigError, match=r"no_such_module is not installed.*pip install 'd2unlearn\[serve\]'"),
        needs_extra("serve"),
    ):
        import_module("no_such_module")
    with pytest.raises(ModuleNotFoundError), needs_extra("serve"):
        import_module("d2unlearn.no_such_module")


def test_a_server_on_loopback_is_reached_by_its_own_names_alone(served: Served) -> None:
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:80"):
        assert served.send("/health", headers={"Host": host}).status == 200
    for host in ("evil.example", "localhost.evil.example", "127.0.0.1.nip.io:80", "", "[::2]"):
        turned_away = served.send("/health", headers={"Host": host})
        assert (turned_away.status, turned_away.error["code"]) == (421, "wrong_host")


def test_the_client_retries_what_can_be_retried(split: Halves) -> None:
    """Statuses mean to OpenAI's client what they should: 503 is asked again, 400 is not."""
    with serving(split.guarded, batch_size=1, queue=1) as running, slowed(split.guarded.model, 0.02):
        patient = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=8, timeout=30)
        texts: list[str | None] = []

        def one(prompt: str) -> None:
            got = patient.chat.completions.create(model=NAME, messages=message(prompt)["messages"])
            texts.append(got.choices[0].message.content)

        threads = [threading.Thread(target=one, args=(prompt,)) for prompt in split.prompts[:4]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        patient.close()
    assert sorted(map(str, texts)) == sorted(answer.text for answer in split.guarded.answer(split.prompts[:4]))


def test_a_question_whose_caller_has_gone_does_not_end_the_engine(split: Halves) -> None:
    engine = Engine(split.guarded, EngineLimits())
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> str:
        begun.set()
        go_on.wait(20)
        return "late"

    first, gone = engine.run(slow), engine.run(lambda: "never asked for")
    assert begun.wait(20)
    assert gone.cancel()
    go_on.set()
    assert first.result(20) == "late"
    assert engine.run(lambda: "next").result(20) == "next"
    assert engine.alive
    engine.stop()
    assert engine.join(20)
