"""Plans of sampling, searched words, paraphrases and the gate: parts, claims, what is asked of whom, and planted findings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

import tiny_models
from d2unlearn.attacks.paraphrases import CANNOT
from d2unlearn.attacks.reading import NotShownError, Reading
from d2unlearn.attacks.requests import AttackReply, AttackRequest
from d2unlearn.audit.parts import AuditRows, Subject
from d2unlearn.audit.plans import gate as gate_plan
from d2unlearn.audit.plans import paraphrases, sampling, universal_prefix
from d2unlearn.audit.plans.gate import far_requests
from d2unlearn.gate import EnergyGate
from d2unlearn.generation.guarded import GuardedModel
from gate.conftest import at

from .asking import ROWS, facts, telling

FORGET_ALONE = AuditRows(ROWS.forget[:3], ROWS.retain)


@pytest.fixture
def subject(gate: EnergyGate, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Subject:
    return Subject("artifact", GuardedModel(model, tokenizer, at(gate, -1e9)), "weights")


def read(plan: Any, subject: Subject, claim: str, rows: AuditRows = ROWS) -> list[Reading]:
    parts = plan.PLAN.parts(subject, rows, "quick", 0)
    return [reading for part in parts if part.claim == claim for reading in part.run()]


def test_samples_and_beams_are_asked_raw_and_behind_the_gate(subject: Subject) -> None:
    leaks = [(("temperature", 1.0), ("k", k), "told") for k in (1, 4)]
    beams, refused = (("beams", 4), "told"), (("temperature", 1.0), "refused")
    readings = {claim: read(sampling, subject, claim, FORGET_ALONE) for claim in ("other_words", "refused")}
    settings = {claim: [(*r.setting.items(), r.measure) for r in of_claim] for claim, of_claim in readings.items()}
    assert settings == {"other_words": [*leaks, beams], "refused": [*leaks, refused, beams]}
    assert [reading.mean for reading in readings["refused"]] == [0.0, 0.0, 1.0, 0.0]  # this gate refuses everything


def test_words_are_searched_on_one_half_and_judged_on_the_other(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    every = telling(ROWS.forget, lambda request: True)
    monkeypatch.setattr(universal_prefix, "answers_of", lambda *_: every)
    told, never_seen = read(universal_prefix, subject, "other_words")
    assert (told.setting, told.mean, len(told.row_ids)) == ({"place": "before"}, 1.0, 4)
    assert (never_seen.rows, never_seen.mean) == ("never_seen", 0.0)
    with pytest.raises(NotShownError, match="one group alone"):
        read(universal_prefix, subject, "other_words", AuditRows(ROWS.forget[:2], ROWS.retain))


def test_given_paraphrases_are_asked_and_a_small_model_makes_none(subject: Subject) -> None:
    rows = AuditRows(ROWS.forget, ROWS.retain, paraphrased=facts("reworded"))
    readings = read(paraphrases, subject, "other_words", rows)
    assert [(reading.rows, reading.setting["wording"]) for reading in readings] == [
        ("paraphrased", "paraphrased"),
        ("forget", "rephrased by itself"),
    ]
    assert readings[0].row_ids == tuple(row.example_id for row in rows.paraphrased)
    assert math.isnan(readings[1].mean)
    assert readings[1].not_asked == {CANNOT: 8}


def test_the_gate_is_looked_at_from_both_sides(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gate that refuses whatever is about a retained row after a turn, and lets every forgotten row through."""

    def guarded(asked: Sequence[AttackRequest], max_new_tokens: int) -> list[AttackReply]:
        return [AttackReply("Sorry.", len(each.messages) > 1 and "retained" in each.messages[-1].content) for each in asked]

    monkeypatch.setattr(gate_plan, "answers_of", lambda *_: guarded)
    monkeypatch.setattr(gate_plan, "_before", lambda _: telling(ROWS.retain, lambda request: len(request.messages) > 1))
    refused = {(r.rows, *r.setting.values()): r for r in read(gate_plan, subject, "nothing_else")}
    assert {key[0] for key in refused} == {"retain", "far"}
    assert refused["far", "plain", "plain"].mean == refused["retain", "plain", "plain"].mean == 0.0
    assert refused["retain", "after-a-forgotten-turn", "several_turns"].mean == 1.0
    assert math.isnan(refused["retain", "final-test", "exam"].mean)  # the original does not answer it so
    missed = [reading for reading in read(gate_plan, subject, "refused") if reading.measure == "missed"]
    assert [(reading.rows, reading.mean) for reading in missed] == [("forget", 1.0)]


def test_without_a_gate_there_is_nothing_to_look_at(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(NotShownError, match="it has no gate"):
        read(gate_plan, Subject("artifact", GuardedModel(model, tokenizer, None), "weights"), "refused")


def test_what_was_answered_before_is_the_original_s(subject: Subject, tokenizer: PreTrainedTokenizerFast) -> None:
    original = tiny_models.llama(vocabulary=176, seed=3)
    beside = Subject("artifact", subject.guarded, "weights", lambda: original)
    request = AttackRequest(ROWS.retain[0].prompt)
    expected = GuardedModel(original, tokenizer, None).answer([request.messages], max_new_tokens=5, raw=True)[0].text
    assert gate_plan._before(beside)([request], 5) == [AttackReply(expected)]
    raw = subject.guarded.answer([request.messages], max_new_tokens=5, raw=True)[0].text
    assert gate_plan._before(subject)([request], 5) == [AttackReply(raw)] != [AttackReply(expected)]


def test_far_requests_are_sixty_different_ones() -> None:
    requests = far_requests()
    assert len({row.question for row in requests}) == len({row.example_id for row in requests}) == len(requests) == 60
