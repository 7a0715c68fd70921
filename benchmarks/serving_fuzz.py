"""Random requests over HTTP to `d2unlearn serve` on loopback: no crash, no unguarded answer, no 500, memory level.

Half of them go to a server whose gate refuses everything, where an answer that is no refusal is unguarded; half to one that
lets everything pass. Bodies are those of a client with fields left out, doubled, of other types, odd texts and deep nesting, or
bytes that are no JSON; heads, paths and methods vary too. A request has at most 64 KiB, and four connections are open at a
time. The model is a tiny random Llama. Blocks of requests are drawn by their number, and those in `--work` are not made again.

    python benchmarks/serving_fuzz.py                             # 100,000; writes benchmarks/results/serving_fuzz.json
    python benchmarks/serving_fuzz.py --requests 2000 --work runs/fuzz --output runs/fuzz.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from d2unlearn import EnergyGate, GuardedModel
from d2unlearn.runtime import write_json
from d2unlearn.schema import Example, Message
from measuring import measured_on, random_llama, word_tokenizer
from serving_load import ALWAYS, NEVER, listening, save

OUTPUT = Path(__file__).parent / "results" / "serving_fuzz.json"
VOCABULARY = 400
BLOCK = 1000
AT_ONCE = 4
LARGEST = 65_536
PATIENCE = 30.0
"""Seconds for one request: longer is a fault."""
REFUSAL = "w5 w6 w7"
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ALLOWED = {200, 400, 401, 403, 404, 405, 408, 411, 413, 415, 421, 431, 501, 503}
"""What a request may be answered with. Bytes that are no HTTP may find the connection closed too (0)."""
TEXTS = (
    *("w9 w10 w11", "", " ", "\x00", "\n" * 50, "<eos>" * 30, "<bos><pad><unk>", "é" * 60, "\U0010ffff", "\u202ew1\u2066"),
    *("w" * 3000, "w8 " * 400, "\ud83d", "\ue000<eos>\ue001", "{{ 7 * 7 }}{% raw %}", "%s%n{0}", "👩‍👩‍👧‍👦", "\u0301" * 200),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 0.5, -0.0, 1e308, 2**63, -(2**70), 10**400, [], {}, [[]], [None], {"a": {}}),
    *("none", "auto", "text", "w9", ["w9"], ["text"], {"type": "text"}, {"include_usage": True}, *TEXTS[:6]),
)
FIELDS = (
    *("model", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop", "stream", "stream_options"),
    *("show_energy", "n", "best_of", "logprobs", "top_logprobs", "logit_bias", "user", "metadata", "store", "tools"),
    *("tool_choice", "response_format", "modalities", "suffix", "echo", "top_k", "min_p", "presence_penalty", "threshold"),
    *("gate", "raw", "messages", "prompt", "__proto__", ""),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000, help="at most 1,000,000")
    parser.add_argument("--work", type=Path, default=Path("runs/serving_fuzz"))
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    if not 2 <= options.requests <= 1_000_000:
        parser.error("--requests should be between 2 and 1,000,000")
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    servers = {"refusing": ALWAYS, "answering": NEVER}
    found = {name: fuzzed(name, threshold, options.requests // 2, options.work) for name, threshold in servers.items()}
    result = {"settings": settings(), **{name: summed(blocks) for name, blocks in found.items()}}
    write_json(options.output, result)
    print(json.dumps({name: result[name] for name in servers}, indent=1))
    sys.exit(any(result[name]["faults"] for name in servers))


def settings() -> dict[str, Any]:
    return {
        **measured_on(),
        "model": f"random Llama, vocabulary {VOCABULARY}, hidden size 32, 2 layers",
        "at_once": AT_ONCE,
        "largest_bytes": LARGEST,
    }


def summed(blocks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All blocks of a server. `growth_mib`: of resident memory, from a tenth of the last process's blocks to their end."""
    statuses: Counter[str] = Counter()
    for block in blocks:
        statuses.update(block["statuses"])
    memory = [block["rss_mib"] for block in blocks]
    whole = [each for each in blocks if each["process"] == blocks[-1]["process"]]
    settled = whole[len(whole) // 10]["rss_mib"]
    return {
        "requests": sum(block["requests"] for block in blocks),
        "statuses": dict(sorted(statuses.items())),
        "answers": sum(block["answers"] for block in blocks),
        "unguarded": sum(block["unguarded"] for block in blocks),
        "faults": [fault for block in blocks for fault in block["faults"]][:20],
        "restarts": len({block["process"] for block in blocks}) - 1,
        "rss_mib": [round(each, 1) for each in memory[:: max(1, len(memory) // 10)]] + [round(memory[-1], 1)],
        "growth_mib": round(whole[-1]["rss_mib"] - settled, 1),
    }


# -- the server ---------------------------------------------------------------------------------------------------------


def make_artifact(threshold: float, folder: Path) -> None:
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 512}
    model = random_llama(vocabulary=VOCABULARY, width=32, intermediate=48, layers=2, heads=4, initializer_range=0.3, **ends)
    rows = [Example(str(i), (Message("user", f"w{i} w{i + 9}"),), "w5", str(i)) for i in range(10, 30)]
    tokenizer = word_tokenizer(VOCABULARY)
    gate = EnergyGate.calibrate(model, tokenizer, rows, max_false_refusal=0.5, max_new_tokens=4, refusal_texts=[REFUSAL])
    save(GuardedModel(model, tokenizer, gate), threshold, folder)


def fuzzed(name: str, threshold: float, count: int, work: Path) -> list[dict[str, Any]]:
    """The blocks of one server; those that the work folder knows are not made again."""
    kept, folder = work / f"{name}.jsonl", work / name
    blocks = [json.loads(line) for line in kept.read_text().splitlines()] if kept.is_file() else []
    starts = range(BLOCK * len(blocks), count, BLOCK)
    if not starts:
        return blocks
    if not folder.is_dir():
        make_artifact(threshold, folder)
    command = [sys.executable, "-m", "d2unlearn.cli.main", "serve", "--model", str(folder), "--port", "0"]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stderr=log, text=True)
        try:
            port = listening(process, log)
            for start in starts:
                block = asyncio.run(one_block(port, start, min(BLOCK, count - start), refusing=threshold == ALWAYS))
                block |= {"process": process.pid, "rss_mib": resident(process.pid)}
                if process.poll() is not None:
                    sys.exit(f"the server ended with {process.returncode} in the block from {start}")
                blocks.append(block)
                with kept.open("a") as file:
                    file.write(json.dumps(block) + "\n")
                print(f"{name} {start}: {block['statuses']}, {block['rss_mib']:.0f} MiB {block['faults'][:1]}", file=sys.stderr)
        finally:
            process.kill()
            process.wait()
    return blocks


def resident(process: int) -> float:
    """MiB."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    return int(found[1]) / 1024 if found else float("nan")


async def one_block(port: int, start: int, count: int, *, refusing: bool) -> dict[str, Any]:
    """The requests from `start` on, a few at a time; what came back."""
    numbers = iter(range(start, start + count))
    statuses: Counter[str] = Counter()
    faults: list[str] = []
    totals = Counter({"answers": 0, "unguarded": 0})

    async def client() -> None:
        for number in numbers:
            content, is_http = request(random.Random(f"{'refusing' if refusing else 'answering'} {number}"))
            try:
                async with asyncio.timeout(PATIENCE):
                    status, body = await exchange(port, content)
            except TimeoutError:
                status, body = -1, b""
            statuses[str(status)] += 1
            answers, unguarded = judged(body, refusing) if status == 200 else (0, 0)
            totals.update(answers=answers, unguarded=unguarded)
            if (status not in ALLOWED and (status or is_http)) or unguarded:
                faults.append(f"request {number}: {status}, {content[:300]!r} gave {body[:300]!r}")

    await asyncio.gather(*(client() for _ in range(AT_ONCE)))
    return {"requests": count, "statuses": statuses, **totals, "faults": faults}


async def exchange(port: int, content: bytes) -> tuple[int, bytes]:
    """The status and body; 0 where the connection ended without an answer."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(content)
            received = await reader.read()
        finally:
            writer.close()
    except OSError:
        return 0, b""
    head, _, body = received.partition(b"\r\n\r\n")
    return (int(head.split()[1]) if head.startswith(b"HTTP/") else 0), body


def judged(body: bytes, refusing: bool) -> tuple[int, int]:
    """How many answers a response holds, and how many of them should not have been shown by a server that refuses everything.

    A stream's pieces are put together for each choice.
    """
    events = re.findall(rb"^data: (\{.*\})\r?$", body, re.MULTILINE) or [body]
    said: dict[int, str] = {}
    for event in events:
        try:
            found = json.loads(event)
        except ValueError:
            continue
        for choice in found.get("choices", ()) if isinstance(found, dict) else ():
            piece = choice.get("text") or (choice.get("message") or choice.get("delta") or {}).get("content") or ""
            said[choice["index"]] = said.get(choice["index"], "") + piece
    return len(said), sum(refusing and text.strip() != REFUSAL for text in said.values())


# -- requests -----------------------------------------------------------------------------------------------------------


def request(rng: random.Random) -> tuple[bytes, bool]:
    """The bytes of a request, and whether they are HTTP."""
    if rng.random() < 0.02:
        return bytes(rng.randrange(256) for _ in range(rng.randrange(1, 200))) + b"\r\n\r\n", False
    path = rng.choices(
        (CHAT, TEXT, "/v1/models", "/health", "/metrics", "/", "/v1/../etc", "/%00", "/v1/chat"), (40, 40, *[1] * 7)
    )[0]
    method = rng.choices(("POST", "GET", "PUT", "HEAD", "OPTIONS", "BREW"), (94, 2, 1, 1, 1, 1))[0]
    content = body(path, rng)[:LARGEST]
    kind = rng.choices(("application/json", "text/plain", "application/json; charset=utf-16", ""), (95, 2, 2, 1))[0]
    host = rng.choices(("localhost", "127.0.0.1", "example.com", ""), (60, 36, 2, 2))[0]
    length = str(len(content)) if rng.random() < 0.99 else rng.choice(("-1", "0", "9" * 30, "x"))
    head = [f"{method} {path} HTTP/1.1", f"Host: {host}", f"Content-Type: {kind}", f"Content-Length: {length}"]
    head += [f"X-{i}: {'y' * 50}" for i in range(rng.choices((0, 5, 200), (94, 5, 1))[0])]
    ours = length == str(len(content)) and method in ("POST", "GET", "PUT", "OPTIONS")
    return "\r\n".join([*head, "Connection: close", "", ""]).encode() + content, ours


def body(path: str, rng: random.Random) -> bytes:
    """A client's body with faults in it, or bytes that are no JSON."""
    kind = rng.random()
    if kind < 0.05:
        return rng.choice(
            (b"", b"{", b"[" * 5000, b'{"a":' * 2000, b"\xff\xfe{}", b"NaN", b'"', bytes(rng.randrange(256) for _ in range(99)))
        )
    fields: dict[str, Any] = {"max_tokens": rng.randrange(1, 5)}
    fields |= {"messages": messages(rng)} if path != TEXT else {"prompt": prompts(rng)}
    if kind < 0.6:
        fields["stream"] = rng.random() < 0.3
        fields["temperature"] = rng.choice((0, 0, 0.7, 2))
    for _ in range(rng.choices((0, 1, 2, 5), (60, 25, 10, 5))[0]):
        fields[rng.choice(FIELDS)] = rng.choice(VALUES)
    if rng.random() < 0.1:
        fields.pop(rng.choice(list(fields)))
    content = json.dumps(fields, ensure_ascii=rng.random() < 0.5).encode(errors="surrogatepass")
    return mutated(content, rng) if rng.random() < 0.1 else content


def messages(rng: random.Random) -> Any:
    if rng.random() < 0.05:
        return rng.choice(VALUES)
    roles = rng.choices(
        ("user", "assistant", "system", "developer", "tool", 5), (60, 20, 10, 5, 3, 2), k=rng.choice((1, 1, 1, 2, 3, 8))
    )
    turns: list[Any] = [{"role": role, "content": content(rng)} for role in roles]
    return turns if rng.random() < 0.5 else [*turns, {"role": "user", "content": text(rng)}]


def content(rng: random.Random) -> Any:
    if rng.random() < 0.7:
        return text(rng)
    parts = [{"type": "text", "text": text(rng)} for _ in range(rng.randrange(3))]
    return parts if rng.random() < 0.7 else rng.choice(VALUES)


def prompts(rng: random.Random) -> Any:
    if rng.random() < 0.05:
        return rng.choice(VALUES)
    return text(rng) if rng.random() < 0.6 else [text(rng) for _ in range(rng.choice((0, 1, 2, 3, 70)))]


def text(rng: random.Random) -> str:
    """Mostly words of the model's."""
    words = " ".join(f"w{rng.randrange(4, VOCABULARY)}" for _ in range(rng.randrange(1, 12)))
    odd: Callable[[], str] = lambda: "".join(chr(rng.randrange(0x3000)) for _ in range(20))  # noqa: E731
    return rng.choices((words, rng.choice(TEXTS), odd()), (70, 20, 10))[0]


def mutated(content: bytes, rng: random.Random) -> bytes:
    """With a few bytes changed, left out or doubled."""
    changed = bytearray(content)
    for _ in range(rng.randrange(1, 4)):
        place = rng.randrange(len(changed))
        match rng.randrange(3):
            case 0:
                changed[place] = rng.randrange(256)
            case 1:
                del changed[place:]
            case _:
                changed[place:place] = changed[place : place + 10]
        changed = changed or bytearray(b"{")
    return bytes(changed)


if __name__ == "__main__":
    main()
