"""Membership as the audit makes it: forgotten rows always, those never seen where there are any; nothing is judged."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from d2unlearn.attacks.reading import Reading
from d2unlearn.audit.claims import CLAIMS
from d2unlearn.audit.parts import AuditRows, Subject
from d2unlearn.audit.plans.membership import PLAN
from d2unlearn.audit.summary import AttackText, Readings, attack_results
from d2unlearn.audit.verdict import ClaimMargins
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


def read(subject: str, rows: str, *values: float) -> Readings:
    names = tuple(f"{rows} {index}" for index in range(len(values)))
    return Readings("membership", subject, None, False, (Reading({"number": "loss"}, "score", rows, names, names, values),))


def test_scores_are_held_against_the_never_knew_model_s_and_against_rows_that_were_never_seen() -> None:
    """Of four pairs the oracle's score is above in three; of those never seen none is."""
    done = [
        read("artifact", "forget", 1.0, 3.0),
        read("artifact", "never_seen", 0.5, 0.25, math.nan),
        read("oracle", "forget", 2.0, 4.0),
    ]
    text = {"membership": AttackText("Membership", "", False)}
    made, groups = dict.fromkeys(CLAIMS, True), {"forget": 2}
    ((result,), _) = attack_results(done, text, rate=None, margins=ClaimMargins(), made=made, groups=groups, seed=0)
    (setting,) = result.settings
    assert {name: (auc.value, auc.n, auc.unscored) for name, auc in setting.told_apart.items()} == {
        "oracle": (0.75, 4, 0),
        "never_seen": (0.0, 4, 1),
    }
    assert setting.values["artifact"].value == pytest.approx(2.0)
