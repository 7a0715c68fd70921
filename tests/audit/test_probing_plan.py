"""Linear probes as the audit makes them: which parts there are, what they count for, what they depend on."""

from __future__ import annotations

from dataclasses import replace

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from d2unlearn.attacks.reading import NotShownError
from d2unlearn.audit.parts import AuditRows, Subject
from d2unlearn.audit.plans.probing import PLAN
from d2unlearn.generation.guarded import GuardedModel
from d2unlearn.schema import Example
from gate import tiny
from gate.conftest import model, tokenizer

__all__ = ["model", "tokenizer"]

ROWS = AuditRows(tiny.examples(2, 12, group_size=2), (), never_seen=tiny.examples(4, 8, group_size=2))


@pytest.fixture
def subject(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Subject:
    return Subject("artifact", GuardedModel(model, tokenizer, None), "weights")


def with_wrong(rows: list[Example], *wrong: str) -> list[Example]:
    return [replace(row, extra={"perturbed_answer": list(wrong)}) for row in rows]


def test_own_wrong_answers_are_asked_where_all_rows_have_them(subject: Subject) -> None:
    parts = list(PLAN.parts(subject, ROWS, "thorough", 0))
    assert [(part.name, part.claim) for part in parts] == [
        ("wrong answers of alike questions", "gone"),
        ("wrong answers of alike questions, control", None),
    ]
    forget_alone = replace(ROWS, forget=with_wrong(list(ROWS.forget), "w1 w2"))
    assert len(list(PLAN.parts(subject, forget_alone, "quick", 0))) == 1
    both = replace(forget_alone, never_seen=with_wrong(list(ROWS.never_seen), "w3"))
    assert [part.name for part in PLAN.parts(subject, both, "quick", 0)] == [
        "wrong answers of alike questions",
        "wrong answers its own",
    ]
    others = replace(both, forget=with_wrong(list(ROWS.forget), "w1 w4"))
    pairs = zip(PLAN.parts(subject, both, "quick", 0), PLAN.parts(subject, others, "quick", 0), strict=True)
    assert all(one.about != other.about for one, other in pairs)


def test_all_layers_of_both_sets_are_read(subject: Subject) -> None:
    (part,) = PLAN.parts(subject, ROWS, "quick", 0)
    readings = [(reading.rows, reading.setting["layer"], len(reading.values)) for reading in part.run()]
    assert readings == [("forget", 0, 12), ("forget", 1, 12), ("never_seen", 0, 8), ("never_seen", 1, 8)]


def test_too_few_groups_are_not_shown_and_never_seen_rows_of_too_few_are_left_out(subject: Subject) -> None:
    with pytest.raises(NotShownError, match="too few"):
        list(PLAN.parts(subject, replace(ROWS, forget=tiny.examples(2, 6, group_size=2)), "quick", 0))
    (part,) = PLAN.parts(subject, replace(ROWS, never_seen=tiny.examples(4, 6, group_size=2)), "quick", 0)
    assert {reading.rows for reading in part.run()} == {"forget"}
