"""Membership as the audit makes it: forgotten rows always, those never seen where there are any; nothing is judged."""

from __future__ import annotations

from dataclasses import replace

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from d2unlearn.audit.parts import AuditRows, Subject
from d2unlearn.audit.plans.membership import PLAN
from d2unlearn.generation.guarded import GuardedModel
from gate import tiny
from gate.conftest import model, tokenizer

__all__ = ["model", "tokenizer"]

ROWS = AuditRows(tiny.examples(2, 6, group_size=2), (), never_seen=tiny.examples(4, 5))


def test_a_part_a_set(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    subject = Subject("artifact", GuardedModel(model, tokenizer, None), "weights")
    parts = list(PLAN.parts(subject, ROWS, "quick", 0))
    assert [(part.name, part.claim, part.cost.scored) for part in parts] == [
        ("scores, forget", None, 6),
        ("scores, never_seen", None, 5),
    ]
    forget, never_seen = (list(part.run()) for part in parts)
    assert {reading.rows for reading in forget} == {"forget"}
    assert [reading.setting for reading in forget] == [reading.setting for reading in never_seen]
    assert forget[0].groups == tuple(row.group for row in ROWS.forget)
    assert [part.name for part in PLAN.parts(subject, replace(ROWS, never_seen=()), "quick", 0)] == ["scores, forget"]
