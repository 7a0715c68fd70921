"""What an audit makes of "Where it hides": which parts, of which rows, and what they judge."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
from transformers import PreTrainedTokenizerFast

import tiny_models
from d2unlearn.attacks.reading import NotShownError, Reading
from d2unlearn.attacks.residuals import hand_over, mean_shift, steer
from d2unlearn.attacks.restoring import interpolate, restore
from d2unlearn.attacks.scoring import probabilities
from d2unlearn.audit.parts import LEVELS, AuditRows, Level, Part, Subject
from d2unlearn.audit.plans import layers, storage
from d2unlearn.generation.guarded import GuardedModel
from d2unlearn.models import state_hash
from d2unlearn.schema import Example, Message

ORIGINAL = tiny_models.llama(seed=1)


def examples(kind: str, n: int) -> list[Example]:
    """n short questions, five a group."""
    return [Example(f"{kind} {i}", (Message("user", f"{kind} {i}?"),), f"answer {i}", f"{kind} {i // 5}") for i in range(n)]


ROWS = AuditRows(examples("forget", 60), examples("retain", 5), (), examples("other words", 7), examples("never", 9))


@pytest.fixture
def subject(chat_tokenizer: PreTrainedTokenizerFast) -> Subject:
    guarded = GuardedModel(tiny_models.llama(), chat_tokenizer, None)
    return Subject("artifact", guarded, "weights", original=lambda: ORIGINAL)


def named(parts: Sequence[Part]) -> dict[str, Part]:
    found = {part.name: part for part in parts}
    assert len(found) == len(parts)
    return found


def ids(readings: Sequence[Reading]) -> set[str]:
    return {row_id for reading in readings for row_id in reading.row_ids}


@pytest.mark.parametrize("level", LEVELS)
def test_only_a_vector_and_the_final_norm_judge_what_is_put_in(subject: Subject, level: Level) -> None:
    parts = list(storage.PLAN.parts(subject, ROWS, level, 0))
    judging = {part.name.split(",")[0] for part in parts if part.claim == "gone"}
    assert judging == {"vector after layer 0", "vector after layer 1", "final norm restored"}
    assert {part.claim for part in parts} == {"gone", None}
    assert (storage.PLAN.uses_original, storage.PLAN.subjects) == (True, ("artifact", "oracle"))


def test_the_rows_of_a_vector_are_asked_in_no_part(subject: Subject) -> None:
    parts = named(list(storage.PLAN.parts(subject, ROWS, "thorough", 3)))
    before = state_hash(subject.model), state_hash(ORIGINAL)
    readings = {name: part.run() for name, part in parts.items()}
    assert (state_hash(subject.model), state_hash(ORIGINAL)) == before
    asked, for_vector = parts["share 0.5"].about
    assert (len(asked), len(for_vector)) == (54, 6)
    assert not set(asked).intersection(for_vector)
    assert {len(ids(of_part)) for of_part in readings.values()} == {54}
    others = [row for row in ROWS.forget if row.example_id not in ids(readings["share 0.5"])]
    vector = mean_shift(subject.model, ORIGINAL, subject.rendered("forget", others).tokens, 1)
    rest = subject.rendered("forget", [row for row in ROWS.forget if row not in others])
    expected = [steer(subject.model, rest, 1, vector, times) for times in (1.0, 2.0)]
    assert readings["vector after layer 1, times 1, 2"] == expected
    assert readings["share 0.5"] == [interpolate(subject.model, ORIGINAL, rest, 0.5)]
    assert readings["attention restored"] == [restore(subject.model, ORIGINAL, rest, "attention")]
    over, back = {"the original's residual after layer": 0}, {"its residual into the original after layer": 0}
    assert readings["handed over after layer 0"] == [hand_over(ORIGINAL, subject.model, rest, 0, over)]
    assert readings["handed back after layer 0"] == [hand_over(subject.model, ORIGINAL, rest, 0, back)]


def test_what_a_part_costs_is_what_it_scores(subject: Subject) -> None:
    parts = named(list(storage.PLAN.parts(subject, ROWS, "quick", 0)))
    assert {name: part.cost.scored for name, part in parts.items()} == {
        "share 0.3": 20,
        **{f"{part} restored": 20 for part in ("layer 0", "layer 1", "attention", "MLP", "embeddings and head", "final norm")},
        **{f"vector after layer {layer}, times 1": 20 + 2 * 6 for layer in (0, 1)},
        **{f"handed {way} after layer 0": 40 for way in ("over", "back")},
    }


def test_parts_are_told_apart_by_their_rows(subject: Subject) -> None:
    fewer = dataclasses.replace(ROWS, forget=ROWS.forget[:50])
    for plan in (storage.PLAN, layers.PLAN):
        first, second, third = (
            named(list(plan.parts(subject, rows, "quick", seed))) for rows, seed in ((ROWS, 0), (ROWS, 0), (fewer, 0))
        )
        assert [part.about for part in first.values()] == [part.about for part in second.values()]
        assert all(first[name].about != third[name].about for name in first)


def test_without_an_original_or_with_too_few_rows_it_is_not_shown(subject: Subject) -> None:
    alone = Subject("artifact", subject.guarded, "weights")
    with pytest.raises(NotShownError, match="needs the model before unlearning"):
        list(storage.PLAN.parts(alone, ROWS, "quick", 0))
    itself = dataclasses.replace(alone, original=lambda: alone.model)
    with pytest.raises(NotShownError, match="has the very weights of this one"):
        list(storage.PLAN.parts(itself, ROWS, "quick", 0))
    with pytest.raises(NotShownError, match="9 forget rows are too few"):
        list(storage.PLAN.parts(subject, dataclasses.replace(ROWS, forget=ROWS.forget[:9]), "quick", 0))


def test_the_model_alone_is_asked_in_every_set_and_at_every_layer_but_the_last(subject: Subject) -> None:
    parts = named(list(layers.PLAN.parts(subject, ROWS, "thorough", 0)))
    assert {name: (part.cost.scored, part.claim) for name, part in parts.items()} == {
        "at rest": (60 + 9 + 7, "gone"),
        "layer 0": (60 + 9, "gone"),
    }
    model = subject.model
    sets = {"forget": ROWS.forget, "never_seen": ROWS.never_seen}
    asked = [subject.rendered(name, rows) for name, rows in sets.items()]
    paraphrased = subject.rendered("forget", ROWS.paraphrased)
    assert parts["at rest"].run() == [
        *(probabilities(model, of_set, {"wording": "as it is"}) for of_set in asked),
        probabilities(model, paraphrased, {"wording": "paraphrased"}),
    ]
    at_layer = parts["layer 0"].run()
    assert [(reading.rows, len(reading.values)) for reading in at_layer] == [("forget", 60), ("never_seen", 9)]
    assert at_layer[0].values != probabilities(model, asked[0], {}).values


def test_quick_asks_few_rows(subject: Subject) -> None:
    rows = dataclasses.replace(ROWS, forget=examples("forget", 100))
    parts = named(list(layers.PLAN.parts(subject, rows, "quick", 0)))
    assert {name: part.cost.scored for name, part in parts.items()} == {"at rest": 60 + 9 + 7, "layer 0": 20 + 9}
