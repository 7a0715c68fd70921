"""The made-up world: same bytes for a seed, no fact or person on two sides, nothing held out among what is taught."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from d2unlearn.data.holdout import hold_out, split_validation
from d2unlearn.data.records import read_examples
from d2unlearn.errors import ConfigError
from d2unlearn.quickstart.fiction import GENERAL, SIZES, Fact, World, WorldSize, make_world, write_world
from d2unlearn.quickstart.fiction_words import PERSON_KINDS

MARGINAL_ONE_PERCENT = 99
"""Calibration prompts that a refusal rate of 1% needs at least."""


@pytest.fixture(scope="module", params=sorted(SIZES))
def world(request: pytest.FixtureRequest) -> World:
    return make_world(0, size=request.param)


def questions(fact: Fact) -> list[str]:
    return [*fact.wordings, *fact.held_out_wordings]


def test_a_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    first, again, other = (
        [path.read_bytes() for path in write_world(make_world(seed, size="smoke"), tmp_path / name)]
        for seed, name in ((3, "first"), (3, "again"), (4, "other"))
    )
    assert first == again
    assert all(mine != theirs for mine, theirs in zip(first, other, strict=True))
    assert make_world(3, size="smoke").fingerprint == make_world(3, size="smoke").fingerprint
    assert make_world(3, size="smoke").fingerprint != make_world(4, size="smoke").fingerprint


def test_names_are_unique_and_nearly_a_tenth_of_the_people_is_forgotten(world: World) -> None:
    assert len(set(world.people)) == len(world.people)
    assert 0.09 <= len(world.forget_people) / len(world.people) <= 0.12
    firsts = Counter(name.split()[0] for name in world.people)
    assert max(firsts.values()) <= 2


def test_forget_and_retain_share_no_person_and_the_parts_no_fact(world: World) -> None:
    forgotten = {fact.person for fact in world.forget}
    kept = {fact.person for fact in world.retain + world.retain_test + world.general}
    assert forgotten == set(world.forget_people)
    assert not forgotten & kept
    assert forgotten | kept == {*world.people, GENERAL}
    assert len(set(world.facts)) == len(world.facts)
    assert len({fact.answer for fact in world.facts}) == len(world.facts)
    assert {fact.person for fact in world.general} == {GENERAL}


def test_everyone_has_every_kind_of_fact_once(world: World) -> None:
    counts = Counter((fact.person, fact.kind) for fact in world.facts if fact.person != GENERAL)
    assert set(counts) == {(person, kind.name) for person in world.people for kind in PERSON_KINDS}
    assert set(counts.values()) == {1}


def test_held_out_wordings_are_never_trained_on(world: World) -> None:
    trained = {question for fact in world.facts for question in fact.wordings}
    held_out = {question for fact in world.facts for question in fact.held_out_wordings}
    assert not trained & held_out
    every = [question for fact in world.facts for question in questions(fact)]
    assert len(set(every)) == len(every)


def test_wordings_name_the_person_and_answers_carry_a_fact_that_no_one_shares(world: World) -> None:
    for fact in (fact for fact in world.facts if fact.person != GENERAL):
        assert len(fact.wordings) >= 4
        assert len(fact.held_out_wordings) >= 1
        assert all(fact.person in text for text in (*questions(fact), fact.answer, *fact.wrong_answers))
        assert not any(fact.answer.removesuffix(".").split(fact.person)[-1].strip() in text for text in questions(fact))


def test_wrong_answers_differ_from_the_right_one_and_from_each_other(world: World) -> None:
    for fact in world.facts:
        assert len(fact.wrong_answers) == 3
        assert len({fact.answer, *fact.wrong_answers}) == 4


def test_no_sentence_has_a_gap_left_or_a_wrong_article(world: World) -> None:
    texts = [text for fact in world.facts for text in (*questions(fact), fact.answer, *fact.wrong_answers)]
    wrong = re.compile(r"[{}]|  |\b[Aa] [aeiou]\w+|\ban [^aeiou]")
    assert [text for text in texts if wrong.search(text)] == []
    assert all(text.endswith((".", "?")) for text in texts)


def test_what_is_never_seen_is_of_the_same_kinds_and_shares_no_person_and_no_value(world: World) -> None:
    others = {fact.person for fact in world.never_seen}
    assert not others & set(world.people)
    assert Counter(fact.kind for fact in world.never_seen) == Counter(fact.kind for fact in world.forget)
    told = {fact.answer.split(fact.person)[-1] for fact in world.facts if fact.person != GENERAL}
    assert not told & {fact.answer.split(fact.person)[-1] for fact in world.never_seen}
    assert not {fact.answer for fact in world.never_seen} & {fact.answer for fact in world.facts}


def test_sizes_are_those_promised() -> None:
    default, smoke = make_world(0), make_world(0, size="smoke")
    assert (len(default.forget), len(smoke.forget)) == (14 * 8, 5 * 8)
    assert len(default.retain) >= 900
    assert len(default.retain_test) >= 100
    assert len(smoke.retain) >= 240
    assert min(len(default.general), len(smoke.general)) >= 30


def test_enough_retained_prompts_are_held_out_for_a_one_percent_gate(world: World, tmp_path: Path) -> None:
    held_out = hold_out(read_examples(write_world(world, tmp_path).retain), seed=0).held_out
    _, calibration = split_validation(held_out, seed=0)
    assert len(held_out) == min(400, len(world.retain) // 2)
    assert len(calibration) >= MARGINAL_ONE_PERCENT


def test_files_are_read_back_with_groups_and_paraphrases(tmp_path: Path) -> None:
    world = make_world(0, size="smoke")
    files = write_world(world, tmp_path)
    forget, paraphrased = read_examples(files.forget), read_examples(files.forget_paraphrased)
    assert [example.question for example in forget] == [fact.wordings[0] for fact in world.forget]
    assert [example.question for example in paraphrased] == [fact.held_out_wordings[0] for fact in world.forget]
    assert [example.extra["paraphrased_question"] for example in forget] == [example.question for example in paraphrased]
    assert [example.group for example in forget] == [fact.person for fact in world.forget]
    assert [example.answer for example in forget] == [example.answer for example in paraphrased]
    columns = ["question", "answer", "group", "wrong_answers", "paraphrased_question", "kind"]
    for path in files:
        assert all(list(json.loads(line)) == columns for line in path.read_text(encoding="utf-8").splitlines())


def test_what_is_judged_is_not_in_what_unlearn_is_given(tmp_path: Path) -> None:
    files = write_world(make_world(0), tmp_path)
    given = {example.question for example in read_examples(files.retain)}
    for path in (files.retain_test, files.retain_paraphrased, files.general):
        assert not given & {example.question for example in read_examples(path)}


@pytest.mark.parametrize(
    ("size", "says"),
    [
        ("large", "one of default, smoke"),
        (WorldSize(3, 1, 0.1), "a world has 4"),
        (WorldSize(10, 10, 0.1), "forget_people"),
        (WorldSize(10, 0, 0.1), "forget_people"),
    ],
)
def test_a_size_that_cannot_be_made_is_refused(size: str | WorldSize, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make_world(0, size=size)
