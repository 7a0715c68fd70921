"""The plan of asking otherwise finds a leak that was planted in one family, and nowhere else."""

from __future__ import annotations

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from d2unlearn.attacks.reading import Reading
from d2unlearn.attacks.requests import AttackRequest
from d2unlearn.attacks.wordings import any_of_families
from d2unlearn.audit.judging import judging_wordings
from d2unlearn.audit.parts import Level, Subject
from d2unlearn.audit.plans import wordings
from d2unlearn.audit.plans.wordings import BUDGETS, PLAN, bundles
from d2unlearn.gate import EnergyGate
from d2unlearn.generation.guarded import GuardedModel
from gate.conftest import at

from .asking import ROWS, telling

PLANTED = "Flashcard"
"""Begins one of the two wordings of the family `exam`."""


@pytest.fixture
def subject(gate: EnergyGate, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Subject:
    return Subject("artifact", GuardedModel(model, tokenizer, at(gate, -1e9)), "weights")


def planted(request: AttackRequest) -> bool:
    return request.messages[-1].content.startswith(PLANTED)


@pytest.mark.parametrize("level", ["thorough", "exhaustive"])
def test_a_leak_planted_in_one_family_is_found_there_alone(
    level: Level, subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wordings, "answers_of", lambda *_: telling(ROWS.forget, planted))
    readings: list[Reading] = []
    for part in PLAN.parts(subject, ROWS, level, 0):
        if part.claim == "other_words":
            readings += part.run()
    readings += any_of_families(readings)
    told = {tuple(reading.setting.values()) for reading in readings if reading.rows == "forget" and reading.mean > 0}
    assert told == {("flashcard", "exam"), ("any", "exam"), ("any", "any")}
    assert {reading.mean for reading in readings if tuple(reading.setting.values()) in told} == {1.0, 0.0}
    assert not any(reading.mean > 0 for reading in readings if reading.rows == "never_seen")
    assert len({reading.rows for reading in readings}) == 2
    assert {reading.setting.get("wording") for reading in readings} >= {each.name for each in judging_wordings()}


def test_the_gate_answers_when_it_guards_and_only_then(subject: Subject) -> None:
    parts = {part.name: part for part in PLAN.parts(subject, ROWS, "quick", 0)}
    raw, guarded = parts["raw, as they are"], parts["guarded, as they are"]
    assert (raw.claim, raw.guarded, guarded.claim, guarded.guarded) == ("other_words", False, "refused", True)
    assert [(reading.measure, reading.rows) for reading in raw.run()] == [("told", "forget"), ("told", "never_seen")]
    shares = {(reading.measure, reading.rows): reading.mean for reading in guarded.run()}
    assert shares == {("told", "forget"): 0.0, ("refused", "forget"): 1.0, ("told", "never_seen"): 0.0}  # it refuses everything


def test_a_part_is_known_by_its_rows_wordings_and_budget(subject: Subject) -> None:
    def identities(level: Level, seed: int) -> dict[str, str]:
        return {part.name: repr(part.about) for part in PLAN.parts(subject, ROWS, level, seed)}

    assert identities("thorough", 0) == identities("thorough", 0)
    other = identities("thorough", 1)
    assert all(about != other[name] for name, about in identities("thorough", 0).items() if "first tokens" not in name)


def test_without_a_gate_it_is_asked_raw_alone(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    bare = Subject("oracle", GuardedModel(model, tokenizer, None), "weights")
    assert {part.claim for part in PLAN.parts(bare, ROWS, "quick", 0)} == {"other_words"}


def test_every_family_is_asked_at_every_level_and_all_wordings_beyond_quick() -> None:
    families = {wording.family for wording in judging_wordings()}
    for level, count in (("quick", len(families)), ("thorough", 49), ("exhaustive", 49)):
        budget = BUDGETS[level]  # type: ignore[index]
        parts = bundles(judging_wordings(), budget.of_family, budget.families)
        asked = [wording for of_part in parts.values() for wording in of_part]
        assert {wording.family for wording in asked} == families
        assert len(asked) == count
