"""Ask a vLLM server the gate's probe prompts, once after each start; until then it refuses everything.

    python -m d2unlearn.generation.vllm_probes --url http://127.0.0.1:8000 --model ./artifact

In one's own process: `llm.generate([{"prompt_token_ids": ids} for ids in probe_requests("./artifact")],
SamplingParams(max_tokens=2))`. With several engines behind one address each has to be asked.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from d2unlearn.errors import D2Error, GateError
from d2unlearn.gate.rule import rule_from_json
from d2unlearn.runtime import read_json, say
from d2unlearn.schema import GATE_COPY

TOKENS = 2
"""Of an answer to a probe: the second tells the engine that the prompt was fed to its end."""
PATIENCE_SECONDS = 120.0


def probe_requests(folder: str | Path) -> list[list[int]]:
    """The token ids of the probe prompts of an artifact. Raises `GateError` when it carries no gate."""
    copy = read_json(Path(folder) / "config.json").get(GATE_COPY)
    if copy is None:
        raise GateError(f"{folder} carries no gate: make one with `d2unlearn calibrate`")
    return [list(probe.token_ids) for probe in rule_from_json(copy)[0].probes]


def ask(url: str, folder: str | Path) -> int:
    """Ask the server at `url` each of them; returns how many. `$OPENAI_API_KEY` is sent where there is one.

    Raises `GateError` when the server cannot be reached, or ends for another energy than was calibrated.
    """
    prompts = probe_requests(folder)
    model = _call(f"{url}/v1/models", None)["data"][0]["id"]
    for ids in prompts:
        _call(f"{url}/v1/completions", {"model": model, "prompt": ids, "max_tokens": TOKENS, "temperature": 0})
    _call(f"{url}/v1/models", None)
    return len(prompts)


def _call(address: str, body: Mapping[str, Any] | None) -> Any:
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("OPENAI_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(address, None if body is None else json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
            return json.load(answer)
    except (OSError, ValueError) as error:
        raise GateError(
            f"{address} gave no answer ({error}); the server's log says whether a probe had another energy"
        ) from error


def ask_command() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", required=True, help="the artifact that is served")
    options = parser.parse_args()
    try:
        say(f"{ask(options.url.rstrip('/'), options.model)} probe prompts asked")
    except D2Error as error:
        say(f"error: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(ask_command())
