"""Relearning as the audit makes it: which parts there are, what they depend on, and that none depends on another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from d2unlearn.attacks.reading import NotShownError, Reading
from d2unlearn.attacks.relearning import SUITED, RelearningGrid
from d2unlearn.audit.claims import Claim
from d2unlearn.audit.kept import KeptParts, PlannedPart, labels_of
from d2unlearn.audit.parts import LEVELS, AuditRows, Level, Part, Subject
from d2unlearn.audit.plans.relearning import BUDGETS, PLAN, suited_rate, worst_attacks
from d2unlearn.generation.guarded import GuardedModel
from d2unlearn.models import state_hash
from d2unlearn.schema import Example
from d2unlearn.training.recipe import automatic_learning_rate
from gate import tiny
from gate.conftest import model, tokenizer

__all__ = ["model", "tokenizer"]

FORGET = [replace(row, example_id=f"f{i}", answer=f"w{i} w{2 * i}") for i, row in enumerate(tiny.examples(2, 12, group_size=3))]
ROWS = AuditRows(FORGET, tiny.examples(3, 6), never_seen=tiny.examples(4, 4))
SMALL = RelearningGrid(
    {"whole groups": (1.0,), "one row": (1.0, 2.0), "facts T": (1.0,), "retained rows": (1.0,)},
    steps=(1, 2),
    batch_size=2,
    lora=1,
    lora_rank=2,
)


@pytest.fixture
def subject(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Subject:
    return Subject("artifact", GuardedModel(model, tokenizer, None), "weights")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUDGETS, "quick", SMALL)  # type: ignore[arg-type]


def parts_of(subject: Subject, rows: AuditRows = ROWS, level: Level = "quick", seed: int = 0) -> list[Part]:
    return list(PLAN.parts(subject, rows, level, seed))


def asked(reading: Reading) -> list[str]:
    """The rows that were."""
    return [row for row, value in zip(reading.row_ids, reading.values, strict=True) if not math.isnan(value)]


def reading(choice: str, rate: float, value: float, rows: str = "forget") -> Reading:
    return Reading({"relearned": choice, "learning rate": rate}, "answer_probability", rows, ("a",), ("a",), (value,))


@pytest.mark.parametrize("level", LEVELS)
def test_every_part_is_told_from_the_others(subject: Subject, level: Level) -> None:
    parts = parts_of(subject, level=level)
    assert len({part.name for part in parts}) == len(parts)
    assert len({str(part.about) for part in parts}) == len(parts)
    assert {part.claim for part in parts} == {"comes_back"}


def test_rates_go_with_the_size_of_the_model(subject: Subject) -> None:
    """The small TOFU model, of 4.2 million parameters, is unlearned at 3e-4; one of a million and less at 5e-4."""
    assert automatic_learning_rate(4_212_992, lora=False) * SUITED == pytest.approx(5e-4)
    assert suited_rate(subject) == pytest.approx(5e-4 * 5 / 3)
    thorough = [part for part in parts_of(subject, level="thorough") if part.name.startswith("one row")]
    assert [part.name for part in thorough] == [
        f"one row, learning rate {rate}, seed 0" for rate in ("1.7e-05", "0.00017", "0.00083", "0.0017")
    ]


def test_no_row_is_asked_that_was_relearned(subject: Subject, small: None) -> None:
    shapes = dict[str, tuple[int, ...]]()
    for part in parts_of(subject)[1:]:
        readings = part.run()
        shapes[part.name.split(",")[0]] = tuple(len(asked(each)) for each in readings)
        assert [(each.rows, each.setting["steps"]) for each in readings] == [
            *(("forget", 1), ("never_seen", 1), ("forget", 2), ("never_seen", 2)),
        ]
        assert readings[0].row_ids == readings[2].row_ids == tuple(row.example_id for row in FORGET)
        assert asked(readings[0]) == asked(readings[2])
        assert sum(readings[0].not_asked.values()) == 12 - len(asked(readings[0]))
    assert shapes == {"whole groups": (9, 4, 9, 4), "one row": (11, 4, 11, 4), "retained rows": (12, 4, 12, 4)}


def test_at_rest_all_models_and_rates_begin_alike(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUDGETS, "quick", replace(SMALL, asked=5))  # type: ignore[arg-type]
    made = parts_of(subject)[0].run()
    assert [(each.rows, each.setting, len(asked(each)), each.not_asked) for each in made] == [
        ("forget", {"steps": 0}, 5, {"not drawn": 7}),
        ("never_seen", {"steps": 0}, 4, {}),
    ]
    assert made[0].row_ids == tuple(row.example_id for row in FORGET)


def test_facts_t_are_relearned_and_v_asked_where_rows_say_which(subject: Subject, small: None) -> None:
    halves: list[Example] = [replace(row, extra={"half": "VT"[i % 2]}) for i, row in enumerate(FORGET)]
    part = next(part for part in parts_of(subject, replace(ROWS, forget=halves)) if part.name.startswith("facts T"))
    assert asked(part.run()[0]) == [row.example_id for row in halves[::2]]
    assert part.cost.trained == 2 * 2
    assert part.cost.scored == 2 * (6 + 4)


def test_a_row_that_holds_the_same_as_one_relearned_is_not_asked(subject: Subject, small: None) -> None:
    twice = [row for row in FORGET for row in (row, replace(row, example_id=f"{row.example_id} again"))]
    part = next(part for part in parts_of(subject, replace(ROWS, forget=twice)) if part.name.startswith("one row"))
    assert len(asked(part.run()[0])) == 22


def test_parts_stand_alone_and_leave_the_model_as_it_was(subject: Subject, small: None) -> None:
    before = state_hash(subject.model)
    forwards = {part.name: repr(part.run()) for part in parts_of(subject)[:3]}
    assert {part.name: repr(part.run()) for part in reversed(parts_of(subject)[:3])} == forwards
    assert state_hash(subject.model) == before


def test_a_part_depends_on_its_rows_and_its_draw_alone(subject: Subject, small: None) -> None:
    def abouts(rows: AuditRows, seed: int = 0) -> list[str]:
        return [str(part.about) for part in parts_of(subject, rows, seed=seed)]

    renamed = [replace(row, example_id=f"other {i}", source="b:1") for i, row in enumerate(FORGET)]
    changed = [*FORGET[:-1], replace(FORGET[-1], answer="w9")]
    assert abouts(replace(ROWS, forget=renamed)) == abouts(ROWS)
    assert set(abouts(replace(ROWS, forget=changed))).isdisjoint(abouts(ROWS))
    assert set(abouts(ROWS, seed=1)[1:]).isdisjoint(abouts(ROWS))


def test_adapters_are_trained_where_most_came_back_of_the_artifact(subject: Subject, small: None) -> None:
    readings = [
        *(reading("whole groups", 1e-3, 0.2), reading("whole groups", 1e-4, 0.6), reading("one row", 1e-3, 0.3)),
        *(reading("one row", 1e-4, float("nan")), reading("one row", 1e-2, 0.9, "never_seen")),
        Reading({"steps": 0}, "answer_probability", "forget", ("a",), ("a",), (0.99,)),
    ]
    assert worst_attacks(readings) == [("whole groups", 1e-4), ("one row", 1e-3)]
    assert PLAN.then is not None
    parts = list(PLAN.then(subject, ROWS, "quick", 0, readings))
    assert [part.name for part in parts] == ["whole groups, LoRA, learning rate 0.0004, seed 0"]
    made = parts[0].run()
    assert (made[0].setting["trained"], made[0].setting["learning rate"]) == ("LoRA", 4e-4)
    whole = parts_of(subject)[1].run()
    assert asked(made[0]) == asked(whole[0])
    assert made[2].mean != pytest.approx(whole[2].mean, rel=1e-4)


def test_choices_that_the_rows_do_not_allow_are_left_out(subject: Subject, small: None) -> None:
    alone: Sequence[Example] = [replace(row, group=None) for row in FORGET]
    names = {part.name.split(",")[0] for part in parts_of(subject, replace(ROWS, forget=alone))}
    assert names == {"at rest", "one row", "retained rows"}
    assert PLAN.unmade is not None
    assert PLAN.unmade(replace(ROWS, forget=alone), "quick", 0) == [
        "relearning whole groups: it needs forget rows of several groups (a column group or author, or --group-size)",
        "relearning facts T: it needs a column half that says T or V of the forget rows",
    ]
    with pytest.raises(NotShownError, match="1 forget rows are too few"):
        parts_of(subject, replace(ROWS, forget=FORGET[:1]))


def test_of_more_rows_than_are_asked_some_are_drawn(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUDGETS, "quick", replace(SMALL, asked=5))  # type: ignore[arg-type]
    made = next(part for part in parts_of(subject) if part.name.startswith("one row")).run()[0]
    assert (len(asked(made)), made.not_asked) == (5, {"relearned, or as one relearned": 1, "not drawn": 6})


@pytest.mark.parametrize("claim", ["comes_back", None])
def test_what_is_kept_of_a_part_comes_back_as_it_was(
    subject: Subject, small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, claim: Claim | None
) -> None:
    monkeypatch.setenv("D2UNLEARN_CACHE", str(tmp_path))
    kept = KeptParts(tmp_path, "", "float32", 0, texts=False, labels=labels_of(ROWS))
    planned = PlannedPart(PLAN, subject, replace(parts_of(subject)[1], claim=claim))
    assert kept.read(planned) is None
    made = kept.keep(planned, planned.part.run())
    assert repr(kept.read(planned)) == repr(made)
    assert made.claim == claim
