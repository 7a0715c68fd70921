"""`d2unlearn serve` under load, on loopback: what the gate costs, what a refusal costs, whose answer comes back, and a kill.

    throughput   a guarded and a raw server in alternating order; the threshold is out of reach, so both generate alike
    refusals     the same requests to a server whose threshold refuses everything
    markers      many connections at once, whole and streamed: every request has words of its own, every answer is known
    restart      SIGKILL under load, the same command again: what clients got, and when answers came again
    bad_client   what others wait beside a client of spellings by the megabyte, slow bodies and early leaves (bad_client.py)

The model is a random Llama whose answers differ from prompt to prompt. Elapsed time and the server's CPU time are both kept:
on a machine that does other things the second tells more. Bounded: loopback, `--clients` connections, minutes.

    python benchmarks/serving_load.py                    # writes benchmarks/results/serving_load.{json,md}
    python benchmarks/serving_load.py --only bad_client  # that part again; the others stay as they were
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bad_client import measured_waits
from d2unlearn import EnergyGate, GuardedModel
from d2unlearn.runtime import atomic_write, read_json, write_json
from d2unlearn.schema import Example, Message
from measuring import measured_on, random_llama, spread, word_tokenizer
from serving_load_page import page

RESULTS = Path(__file__).parent / "results" / "serving_load"
VOCABULARY = 32_000
PROMPT_WORDS = 20
NEVER, ALWAYS = 1e30, -1e30
OTHERS = 8
"""Clients beside the bad one: so many answers at once are the machine's to give."""


@dataclass(frozen=True)
class Running:
    """A server: its process and port."""

    process: subprocess.Popen[str]
    port: int

    def cpu_seconds(self) -> float:
        """User and system time so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Got:
    """What came back: the status (0: a connection error), the text, how it ended, and seconds."""

    status: int
    text: str
    finish: str
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=32, help="connections at once; at most 512")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--width", type=int, default=512, help="hidden size of the random Llama")
    parser.add_argument("--output", type=Path, default=RESULTS, help="without ending: .json and .md are added")
    parser.add_argument("--only", choices=["bad_client"], help="measure this part alone and keep the file's others")
    options = parser.parse_args()
    if not 1 <= options.clients <= 512:
        parser.error("--clients should be between 1 and 512")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        result = measure(Path(scratch), options) if options.only is None else measure_bad_client(Path(scratch), options)
    write_json(options.output.with_suffix(".json"), result)
    atomic_write(options.output.with_suffix(".md"), page(result))
    print(page(result))


def measure(scratch: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All four parts."""
    say("a random model, and what it answers alone")
    guarded = make_model(options.width, options.new_tokens)
    assert guarded.gate is not None
    folders = {"guarded": NEVER, "refusing": ALWAYS}
    for name, threshold in folders.items():
        save(guarded, threshold, scratch / name)
    prompts = marked_prompts(options.clients)
    expected = [a.text for a in guarded.answer(prompts, max_new_tokens=options.new_tokens, batch_size=1, raw=True)]
    if len(set(expected)) < len(expected):
        sys.exit("two prompts have the same answer, so a mix-up could not be told; choose another --width")
    load = [body(prompt, options.new_tokens) for prompt in prompts]
    with ExitStack() as stack:
        say("three servers")
        servers = {
            "guarded": stack.enter_context(serve(scratch / "guarded", options)),
            "raw": stack.enter_context(serve(scratch / "guarded", options, "--raw")),
            "refusing": stack.enter_context(serve(scratch / "refusing", options)),
        }
        for running in servers.values():
            asyncio.run(crowd(running.port, load[: options.batch_size]))  # warm
        say("throughput")
        rounds, seen = throughput(servers["guarded"], servers["raw"], load, expected, options.rounds)
        say("refusals")
        refusals = cost_of_refusals(servers["refusing"], servers["guarded"], load, max(3, options.rounds // 3))
        say("markers")
        markers = marks(servers["guarded"], prompts, expected, options.new_tokens)
        say("a bad client")
        bad = measured_waits(servers["guarded"].port, load[:OTHERS], post, options.rounds)
    say("restart")
    restarted = restart(scratch / "guarded", prompts, expected, options)
    return {
        "settings": settings(guarded, options),
        "throughput": {**rounds, "answers": seen},
        "refusals": refusals,
        "markers": markers,
        "restart": restarted,
        "bad_client": bad,
    }


def measure_bad_client(scratch: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What is kept, with this part measured again, on the same model and with the same settings."""
    kept = read_json(options.output.with_suffix(".json"))
    guarded = make_model(options.width, options.new_tokens)
    save(guarded, NEVER, scratch / "guarded")
    if settings(guarded, options) | {"rounds": 0} != kept["settings"] | {"rounds": 0}:
        sys.exit("the other parts were measured with other settings; give those, or measure all parts")
    load = [body(prompt, options.new_tokens) for prompt in marked_prompts(options.clients)][:OTHERS]
    with serve(scratch / "guarded", options) as running:
        asyncio.run(crowd(running.port, load))  # warm
        return {**kept, "bad_client": measured_waits(running.port, load, post, options.rounds)}


def settings(guarded: GuardedModel, options: argparse.Namespace) -> dict[str, Any]:
    return {
        **measured_on(),
        "hardware": f"{measured_on()['hardware']}, 1 thread a server",
        "model": f"random Llama, {guarded.model.num_parameters() / 1e6:.1f}M parameters, vocabulary {VOCABULARY}",
        "clients": options.clients,
        "batch_size": options.batch_size,
        "new_tokens": options.new_tokens,
        "prompt_words": PROMPT_WORDS,
        "rounds": options.rounds,
    }


def make_model(width: int, new_tokens: int) -> GuardedModel:
    """A random Llama with a token for every id, and a gate of the default score."""
    tokenizer = word_tokenizer(VOCABULARY)
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    shape = {"vocabulary": VOCABULARY, "width": width, "intermediate": width * 43 // 16, "layers": 8, "heads": 8}
    model = random_llama(**shape, initializer_range=0.06, **ends)
    rows = [Example(str(i), (Message("user", text),), "w5", str(i)) for i, text in enumerate(marked_prompts(12, seed=1))]
    gate = EnergyGate.calibrate(model, tokenizer, rows, max_false_refusal=0.5, max_new_tokens=new_tokens, batch_size=12)
    return GuardedModel(model, tokenizer, gate)


def save(guarded: GuardedModel, threshold: float, folder: Path) -> None:
    """The artifact with another threshold."""
    assert guarded.gate is not None
    guarded.model.save_pretrained(folder)
    guarded.tokenizer.save_pretrained(folder)
    seen = (max(threshold, *guarded.gate.calibration.calibration_scores),)  # a threshold above all scores is no gate's
    measured = replace(
        guarded.gate.calibration, threshold=threshold, conformal_threshold=min(threshold, 0.0), forget_scores=seen
    )
    replace(guarded.gate, calibration=measured, weights_hash=None).save(folder)


def marked_prompts(count: int, *, seed: int = 0) -> list[str]:
    """Prompts that share no word: its own words are a prompt's marker."""
    words = np.random.default_rng(seed).permutation(np.arange(100, VOCABULARY))[: count * PROMPT_WORDS]
    return [" ".join(f"w{i}" for i in row) for row in words.reshape(count, PROMPT_WORDS)]


@contextmanager
def serve(folder: Path, options: argparse.Namespace, *more: str, port: int = 0) -> Iterator[Running]:
    """`d2unlearn serve` as a process of its own, with one thread."""
    limits = ["--batch-size", str(options.batch_size), "--max-new-tokens", str(options.new_tokens), "--queue", "4096"]
    command = ["-m", "d2unlearn.cli.main", "serve", "--model", str(folder), "--port", str(port), "--timeout", "600"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen([sys.executable, *command, *limits, *more], stderr=log, env=environment, text=True)
        try:
            yield Running(process, listening(process, log))
        finally:
            process.kill()
            process.wait()


def listening(process: subprocess.Popen[str], log: Any) -> int:
    """The port that it says it listens on."""
    while True:
        log.seek(0)
        said = log.read()
        found = re.search(r"listening on http://127\.0\.0\.1:(\d+)/v1", said)
        if found:
            return int(found[1])
        if process.poll() is not None:
            sys.exit(f"the server did not start: {said}")
        time.sleep(0.05)


def body(prompt: str, new_tokens: int, *, stream: bool = False) -> bytes:
    fields = {"messages": [{"role": "user", "content": prompt}], "max_tokens": new_tokens, "stream": stream}
    return json.dumps(fields).encode()


async def crowd(port: int, bodies: Sequence[bytes]) -> list[Got]:
    """All at once, each on a connection of its own."""
    return list(await asyncio.gather(*(post(port, each) for each in bodies)))


async def post(port: int, content: bytes) -> Got:
    """One request; whatever goes wrong with the connection is status 0."""
    began = time.perf_counter()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
        )
        writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        received = await reader.read()
        writer.close()
    except OSError:
        return Got(0, "", "", time.perf_counter() - began)
    return read(received, time.perf_counter() - began)


def read(received: bytes, seconds: float) -> Got:
    """A whole or streamed response; one that was cut short is status 0."""
    head, _, rest = received.partition(b"\r\n\r\n")
    status = int(head.split()[1]) if head.startswith(b"HTTP/") else 0
    if b"text/event-stream" in head:
        events = re.findall(rb"^data: (\{.*\})\r?$", rest, re.MULTILINE)
        choices = [json.loads(event)["choices"][0] for event in events]
        text = "".join(choice["delta"].get("content") or "" for choice in choices)
        whole = b"data: [DONE]" in rest
        return Got(status if whole else 0, text, choices[-1]["finish_reason"] if whole else "", seconds)
    try:
        found = json.loads(rest)
    except ValueError:
        return Got(0, "", "", seconds)
    choice = found["choices"][0] if status == 200 else {"message": {"content": ""}, "finish_reason": ""}
    return Got(status, choice["message"]["content"], choice["finish_reason"], seconds)


def judged(got: Sequence[Got], expected: Sequence[str]) -> Counter[str]:
    """How many answers are the prompt's own, lost, its own but for later tokens (batches round otherwise), or none of these."""
    found: Counter[str] = Counter({"own": 0, "mixed_up": 0, "lost": 0, "rounded": 0})
    for each, text in zip(got, expected, strict=True):
        if each.status != 200:
            found["lost"] += 1
        elif each.text == text:
            found["own"] += 1
        else:
            begun_alike = each.text.split()[:2] == text.split()[:2] and each.text not in expected
            found["rounded" if begun_alike else "mixed_up"] += 1
    return found


def throughput(
    guarded: Running, raw: Running, load: list[bytes], expected: list[str], rounds: int
) -> tuple[dict[str, Any], dict[str, int]]:
    """Requests a second of both, and their ratio within each round, elapsed and in the servers' CPU time."""
    ratios: dict[str, list[float]] = {"elapsed": [], "cpu": []}
    rates: dict[str, list[float]] = {"guarded": [], "raw": []}
    seen: Counter[str] = Counter()
    for turn in range(rounds):
        spent: dict[str, tuple[float, float]] = {}
        order = (("guarded", guarded), ("raw", raw))
        for name, server in order if turn % 2 else order[::-1]:
            began, cpu = time.perf_counter(), server.cpu_seconds()
            got = asyncio.run(crowd(server.port, load))
            spent[name] = time.perf_counter() - began, server.cpu_seconds() - cpu
            seen += judged(got, expected)
            rates[name].append(len(load) / spent[name][0])
        for place, clock in enumerate(ratios):
            ratios[clock].append(spent["raw"][place] / spent["guarded"][place])
    medians = {f"{name}_requests_per_second": statistics.median(found) for name, found in rates.items()}
    kinds = {name: seen[name] for name in ("own", "rounded", "mixed_up", "lost")}
    return {**medians, **{f"ratio_{clock}": spread(found) for clock, found in ratios.items()}}, kinds


def cost_of_refusals(refusing: Running, answering: Running, load: list[bytes], rounds: int) -> dict[str, Any]:
    """CPU milliseconds of the server a request, refused and answered, and the ratio within each round."""
    spent: dict[str, list[float]] = {"refusal": [], "answer": []}
    for _ in range(rounds):
        for name, server in (("refusal", refusing), ("answer", answering)):
            cpu = server.cpu_seconds()
            got = asyncio.run(crowd(server.port, load))
            if {each.finish == "content_filter" for each in got} != {name == "refusal"}:
                sys.exit(f"the {name} server did not only give {name}s")
            spent[name].append(1000 * (server.cpu_seconds() - cpu) / len(load))
    ratios = [refusal / answer for refusal, answer in zip(spent["refusal"], spent["answer"], strict=True)]
    return {**{f"{name}_cpu_ms": statistics.median(found) for name, found in spent.items()}, "ratio": spread(ratios)}


def marks(server: Running, prompts: list[str], expected: list[str], new_tokens: int) -> dict[str, Any]:
    """All prompts four times, whole and streamed in turn, on as many connections at once."""
    bodies = [body(prompt, new_tokens, stream=bool(i % 2)) for i, prompt in enumerate(prompts * 4)]
    got = asyncio.run(crowd(server.port, bodies))
    return {"connections": len(bodies), **judged(got, expected * 4)}


def restart(folder: Path, prompts: list[str], expected: list[str], options: argparse.Namespace) -> dict[str, Any]:
    """Clients ask without a pause while the server is killed and started again on the same port."""
    with serve(folder, options) as first:
        return asyncio.run(_restart(first, folder, prompts, expected, options))


async def _restart(
    first: Running, folder: Path, prompts: list[str], expected: list[str], options: argparse.Namespace
) -> dict[str, Any]:
    phase, over = "before", asyncio.Event()
    found: dict[str, Counter[str]] = {"before": Counter(), "after": Counter()}

    async def client(index: int) -> None:
        while not over.is_set():
            got = await post(first.port, body(prompts[index], options.new_tokens, stream=bool(index % 2)))
            found[phase] += judged([got], [expected[index]]) if got.status else Counter(connection_error=1)
            await asyncio.sleep(0 if got.status else 0.25)

    clients = [asyncio.create_task(client(index)) for index in range(len(prompts))]
    await _until(lambda: found["before"]["own"] >= len(prompts))
    phase = "after"
    first.process.send_signal(signal.SIGKILL)
    first.process.wait()
    began = time.perf_counter()
    with ExitStack() as stack:
        again = await asyncio.to_thread(lambda: stack.enter_context(serve(folder, options, port=first.port)))
        started = time.perf_counter() - began
        await _until(lambda: found["after"]["own"] >= 2 * len(prompts))
        over.set()
        await asyncio.gather(*clients)
        assert again.process.poll() is None
    names = ("own", "rounded", "mixed_up", "lost", "connection_error")
    return {"seconds_to_listen_again": started, **{when: {n: seen[n] for n in names} for when, seen in found.items()}}


async def _until(holds: Any) -> None:
    while not holds():
        await asyncio.sleep(0.05)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
