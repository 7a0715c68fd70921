"""Compression as the audit makes it: parts, what they depend on, and what they read."""

from __future__ import annotations

from dataclasses import replace

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from d2unlearn.attacks.averaging import Averaging
from d2unlearn.attacks.compression import Pruning, Quantisation
from d2unlearn.attacks.reading import NotShownError
from d2unlearn.audit.parts import LEVELS, AuditRows, Subject
from d2unlearn.audit.plans.compression import BUDGETS, PLAN, CompressionBudget
from d2unlearn.gate import EnergyGate
from d2unlearn.generation.guarded import GuardedModel
from gate import tiny
from gate.conftest import gate, model, tokenizer

__all__ = ["gate", "model", "tokenizer"]

ROWS = AuditRows(tiny.examples(2, 6, group_size=2), tiny.examples(3, 12), never_seen=tiny.examples(4, 5))
SMALL = CompressionBudget((Quantisation(4, 16), Pruning(0.5)), (Averaging(1, batch_size=4),), 4, (Quantisation(8, 16),), 3)


@pytest.fixture
def subject(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, gate: EnergyGate) -> Subject:
    return Subject("artifact", GuardedModel(model, tokenizer, gate), "weights")


@pytest.mark.parametrize("level", LEVELS)
def test_every_part_has_a_name_of_its_own(subject: Subject, level: str) -> None:
    parts = list(PLAN.parts(subject, ROWS, level, 0))  # type: ignore[arg-type]
    assert len({part.name for part in parts}) == len(parts)
    assert len({str(part.about) for part in parts}) == len(parts)


def test_parts_read_all_sets_and_gated_ones_energies_and_decisions(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUDGETS, "quick", SMALL)  # type: ignore[arg-type]
    found = {part.name: (part, list(part.run())) for part in PLAN.parts(subject, ROWS, "quick", 0)}
    assert [(name, part.claim, part.guarded) for name, (part, _) in found.items()] == [
        ("int4, group size 16, symmetric", "comes_back", False),
        ("pruned, share 0.5", "comes_back", False),
        ("averaged with a fine-tune, share 0.5, learning rate 0.0005, steps 1", "comes_back", False),
        ("gate, none", None, True),
        ("gate, int8, group size 16, symmetric", None, True),
    ]
    for part, readings in found.values():
        shapes = [(reading.rows, reading.measure, len(reading.values)) for reading in readings]
        if part.guarded:
            assert shapes == [
                ("forget", "score", 3), ("retain", "score", 3), ("forget", "refused", 3), ("retain", "refused", 3)
            ]  # fmt: skip
        else:
            assert shapes == [("forget", "answer_probability", 4), ("never_seen", "answer_probability", 4)]


def test_without_a_gate_there_is_nothing_that_energies_could_move(subject: Subject) -> None:
    raw = replace(subject, guarded=GuardedModel(subject.model, subject.guarded.tokenizer, None))
    assert not any(part.guarded for part in PLAN.parts(raw, ROWS, "quick", 0))


def test_parts_depend_on_the_rows(subject: Subject) -> None:
    others = replace(ROWS, forget=tiny.examples(5, 6))
    for one, other in zip(PLAN.parts(subject, ROWS, "quick", 0), PLAN.parts(subject, others, "quick", 0), strict=True):
        assert one.about != other.about


def test_without_retained_rows_there_is_no_average(subject: Subject) -> None:
    parts = {part.name: part for part in PLAN.parts(subject, replace(ROWS, retain=()), "quick", 0)}
    averaging = next(part for name, part in parts.items() if name.startswith("averaged"))
    with pytest.raises(NotShownError, match="there are none"):
        averaging.run()
