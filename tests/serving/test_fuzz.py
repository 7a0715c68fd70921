"""Random requests in short, with the long run's own generator; that run is benchmarks/serving_fuzz.py."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from d2unlearn.generation.guarded import GuardedModel
from gate.conftest import at
from generation.conftest import Halves

from .conftest import serving

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import serving_fuzz


@pytest.mark.parametrize("refusing", [True, False])
def test_random_requests_find_no_fault_and_no_unguarded_answer(split: Halves, refusing: bool) -> None:
    """300 of them, of which some get answers; a server that refuses everything shows nothing but its refusal."""
    gate = split.guarded.gate
    assert gate is not None
    decided = replace(at(gate, -1e9 if refusing else 1e9), refusal_texts=(serving_fuzz.REFUSAL,))
    with serving(GuardedModel(split.guarded.model, split.guarded.tokenizer, decided), max_new_tokens=4) as running:
        found = asyncio.run(serving_fuzz.one_block(running.port, 0, 300, refusing=refusing))
        assert running.healthy()
    assert found["faults"] == []
    assert found["unguarded"] == 0
    assert sum(found["statuses"].values()) == found["requests"] == 300
    assert found["statuses"]["200"] > 60
    assert found["answers"] > 60


def test_an_answer_that_a_refusing_server_shows_is_found_whole_and_in_a_stream() -> None:
    refused = {"choices": [{"index": 0, "message": {"content": serving_fuzz.REFUSAL}}]}
    shown = {"choices": [{"index": 0, "text": serving_fuzz.REFUSAL}, {"index": 1, "text": "w9"}]}
    pieces = [{"choices": [{"index": 0, "delta": {"content": piece}}]} for piece in ("w9 ", serving_fuzz.REFUSAL)]
    stream = "".join(f"data: {json.dumps(piece)}\n\n" for piece in [*pieces, {"choices": []}]) + "data: [DONE]\n\n"
    assert serving_fuzz.judged(json.dumps(refused).encode(), True) == (1, 0)
    assert serving_fuzz.judged(json.dumps(shown).encode(), True) == (2, 1)
    assert serving_fuzz.judged(json.dumps(shown).encode(), False) == (2, 0)
    assert serving_fuzz.judged(stream.encode(), True) == (1, 1)
    assert serving_fuzz.judged(stream.replace("w9 ", "").encode(), True) == (1, 0)
