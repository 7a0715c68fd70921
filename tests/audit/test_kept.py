"""A part is read again as it was kept, whatever its numbers and settings are, and is another part where anything differs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from d2unlearn.attacks.reading import Reading
from d2unlearn.audit.claims import Claim
from d2unlearn.audit.kept import KeptParts, PlannedPart
from d2unlearn.audit.parts import AttackPlan, Cost, Part, Subject
from d2unlearn.generation.guarded import GuardedModel

PLAN = AttackPlan("planted", "Planted", "Nothing.", lambda *_: ())
READING = Reading(
    {"wording": "any", "k": 4, "temperature": 0.5},
    "told",
    "forget",
    ("a", "b"),
    ("g", "b"),
    (1.0, math.nan),
    ("x", ""),
    {"r": 1},
)


@pytest.mark.parametrize("claim", ["refused", None])
def test_what_is_kept_is_read_as_it_was(
    claim: Claim | None, tmp_path: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    kept = KeptParts(tmp_path, "original", "float32", 0, texts=True, labels=frozenset())
    part = Part("part", {"rows": ["hash"]}, Cost(), lambda: [READING], claim)
    planned = PlannedPart(PLAN, Subject("artifact", GuardedModel(model, tokenizer, None), "weights"), part)
    assert kept.read(planned) is None
    made = kept.keep(planned, part.run())
    again = kept.read(planned)
    assert repr(again) == repr(made)
    assert made.readings[0].texts == ("x", "")
    assert json.loads(next((tmp_path / "parts").glob("*.json")).read_text())["claim"] == claim
    assert kept.read(planned._replace(part=replace(part, about={"rows": ["other"]}))) is None
