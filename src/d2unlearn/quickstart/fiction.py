"""A small world of made-up people, from a seed: the data that the quickstart forgets, keeps and is judged by. No network.

Every person has one fact of each kind (birthplace, profession, mentor, first book, prize, pet, dish, languages), every fact
several wordings of its question, and beside the people there is general knowledge. The world is cut four ways:

    forget         all facts of about a tenth of the people
    retain         facts of the others and two thirds of the general knowledge: what `unlearn` and `calibrate` are given
    retain_test    a seeded share of those, drawn fact by fact and left out of `retain`: what they are judged by
    general        the last third of the general knowledge: nothing of it is in `retain`

Beside it are facts of the same kinds about as many other people as are forgotten, which nobody is ever taught (`never_seen`):
what an attack makes a model say of these, it did not know.

A model is taught everything in the trained wordings (quickstart/pretrain.py); the held-out wordings are never trained on.
"""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from d2unlearn.errors import ConfigError
from d2unlearn.quickstart.fiction_words import FIRST_NAMES, GENERAL_KINDS, LAST_NAMES, PERSON_KINDS, GeneralKind, PersonKind
from d2unlearn.runtime import atomic_write, fingerprint

GENERAL = "general"
"""Stands in `Fact.person` for general knowledge."""
WRONG_ANSWERS = 3
GENERAL_SHARE = 1 / 3
"""Share of the general knowledge that `retain` never shows."""


class WorldSize(NamedTuple):
    """How many people there are, how many of them are forgotten, and the share of retained facts kept for the test."""

    people: int
    forget_people: int
    test_share: float


SIZES = {"default": WorldSize(140, 14, 0.14), "smoke": WorldSize(46, 5, 0.14)}


@dataclass(frozen=True)
class Fact:
    """One thing to know. `wordings` are trained on, the first one is the row's question; `held_out_wordings` never are."""

    person: str
    kind: str
    wordings: tuple[str, ...]
    held_out_wordings: tuple[str, ...]
    answer: str
    wrong_answers: tuple[str, ...]


@dataclass(frozen=True)
class World:
    """Everything there is to know, cut in four parts that share no fact; `never_seen`: what nobody is taught."""

    people: tuple[str, ...]
    forget_people: tuple[str, ...]
    forget: tuple[Fact, ...]
    retain: tuple[Fact, ...]
    retain_test: tuple[Fact, ...]
    general: tuple[Fact, ...]
    never_seen: tuple[Fact, ...]

    @property
    def facts(self) -> tuple[Fact, ...]:
        """All of them: what the base model is taught."""
        return self.forget + self.retain + self.retain_test + self.general

    @property
    def fingerprint(self) -> str:
        """Differs when any fact or wording that is taught does."""
        return fingerprint(
            [[vars(fact) for fact in part] for part in (self.forget, self.retain, self.retain_test, self.general)]
        )


class Files(NamedTuple):
    """Where `write_world` put things; the `_paraphrased` files ask in a wording that nothing is trained on."""

    forget: Path
    retain: Path
    retain_test: Path
    forget_paraphrased: Path
    retain_paraphrased: Path
    general: Path
    never_seen: Path


def make_world(seed: int, *, size: str | WorldSize = "default") -> World:
    """The world of a seed: the same seed and size give the same world on every machine.

    Raises `ConfigError` for a size that is unknown, has more people than names, or forgets everyone or no one.
    """
    wanted = _checked_size(size)
    rng = random.Random(f"d2unlearn-world-{seed}")
    people = _names(rng, wanted.people)
    forget_people = people[: wanted.forget_people]
    by_person: dict[str, list[Fact]] = {person: [] for person in people}
    taken: dict[str, Collection[str]] = {}
    for kind in PERSON_KINDS:
        taken[kind.name] = values = _values(rng, kind, len(people))
        for fact in _person_facts(rng, kind, people, values):
            by_person[fact.person].append(fact)
    general = [fact for kind in GENERAL_KINDS for fact in _general_facts(rng, kind)]
    rng.shuffle(general)
    unseen = round(GENERAL_SHARE * len(general))
    retained = [fact for person in people[wanted.forget_people :] for fact in by_person[person]] + general[unseen:]
    rng.shuffle(retained)
    tested = round(wanted.test_share * len(retained))
    return World(
        people=people,
        forget_people=forget_people,
        forget=tuple(fact for person in forget_people for fact in by_person[person]),
        retain=tuple(retained[tested:]),
        retain_test=tuple(retained[:tested]),
        general=tuple(general[:unseen]),
        never_seen=_never_seen(seed, max(wanted.forget_people, WRONG_ANSWERS + 1), people, taken),
    )


def write_world(world: World, folder: str | Path) -> Files:
    """Write the world as JSON lines in question/answer format, each file atomically; the same world gives the same bytes.

    Columns: question, answer, group (the person, or "general"), wrong_answers, paraphrased_question, kind.
    """
    files = Files(*(Path(folder) / f"{name}.jsonl" for name in Files._fields))
    parts = {
        files.forget: (world.forget, False),
        files.retain: (world.retain, False),
        files.retain_test: (world.retain_test, False),
        files.forget_paraphrased: (world.forget, True),
        files.retain_paraphrased: (world.retain_test, True),
        files.general: (world.general, False),
        files.never_seen: (world.never_seen, False),
    }
    for path, (facts, paraphrased) in parts.items():
        lines = (json.dumps(row(fact, paraphrased=paraphrased), ensure_ascii=False) for fact in facts)
        atomic_write(path, "".join(line + "\n" for line in lines))
    return files


def row(fact: Fact, *, paraphrased: bool = False) -> dict[str, object]:
    """A fact as a row of a data set, asked in its first wording, or in its first held-out one when `paraphrased`."""
    return {
        "question": fact.held_out_wordings[0] if paraphrased else fact.wordings[0],
        "answer": fact.answer,
        "group": fact.person,
        "wrong_answers": list(fact.wrong_answers),
        "paraphrased_question": fact.held_out_wordings[-1 if paraphrased else 0],
        "kind": fact.kind,
    }


def _checked_size(size: str | WorldSize) -> WorldSize:
    if isinstance(size, str):
        if size not in SIZES:
            raise ConfigError([f"size should be one of {', '.join(SIZES)}, not {size!r}"])
        return SIZES[size]
    most = len(FIRST_NAMES) * len(LAST_NAMES)
    if not WRONG_ANSWERS < size.people <= most // 2:
        raise ConfigError([f"a world has {WRONG_ANSWERS + 1} to {most // 2} people, not {size.people}"])
    if not 0 < size.forget_people < size.people:
        raise ConfigError([f"forget_people should be between 1 and {size.people - 1}, not {size.forget_people}"])
    return size


def _never_seen(seed: int, count: int, people: Sequence[str], taken: Mapping[str, Collection[str]]) -> tuple[Fact, ...]:
    """All facts of so many other people; of their values nobody else has any. taken: the values that are known, by kind."""
    rng = random.Random(f"d2unlearn-never-seen-{seed}")
    others = _names(rng, count, people)
    facts = [
        fact for kind in PERSON_KINDS for fact in _person_facts(rng, kind, others, _values(rng, kind, count, taken[kind.name]))
    ]
    return tuple(sorted(facts, key=lambda fact: others.index(fact.person)))


def _names(rng: random.Random, count: int, taken: Collection[str] = ()) -> tuple[str, ...]:
    """Full names, all different; a first or last name is used again only when all others have been used as often."""
    names: dict[str, None] = {}
    firsts: list[str] = []
    lasts: list[str] = []
    while len(names) < count:
        firsts = firsts or rng.sample(FIRST_NAMES, len(FIRST_NAMES))
        lasts = lasts or rng.sample(LAST_NAMES, len(LAST_NAMES))
        name = f"{firsts.pop()} {lasts.pop()}"
        names |= {} if name in taken else {name: None}
    return tuple(names)


def _values(rng: random.Random, kind: PersonKind, count: int, taken: Collection[str] = ()) -> tuple[str, ...]:
    """So many values of this kind, all different."""
    values: dict[str, None] = {}
    while len(values) < count:
        value = kind.pattern.format(*(rng.choice(pool) for pool in kind.pools))
        values |= {} if value in taken else {value: None}
    return tuple(values)


def _person_facts(rng: random.Random, kind: PersonKind, people: Sequence[str], values: Sequence[str]) -> list[Fact]:
    """One fact of this kind for each person, with these values."""
    facts = []
    for person, value in zip(people, values, strict=True):
        answer = rng.choice(kind.answers)
        wrong = rng.sample([other for other in values if other != value], WRONG_ANSWERS)
        facts.append(
            Fact(
                person,
                kind.name,
                tuple(text.format(name=person) for text in rng.sample(kind.wordings, len(kind.wordings))),
                tuple(text.format(name=person) for text in rng.sample(kind.held_out_wordings, len(kind.held_out_wordings))),
                answer.format(name=person, value=value),
                tuple(answer.format(name=person, value=other) for other in wrong),
            )
        )
    return facts


def _general_facts(rng: random.Random, kind: GeneralKind) -> list[Fact]:
    facts = []
    for about, value in kind.pairs:
        others = sorted({other for _, other in kind.pairs} - {value})
        facts.append(
            Fact(
                GENERAL,
                kind.name,
                tuple(text.format(about) for text in kind.wordings),
                tuple(text.format(about) for text in kind.held_out_wordings),
                _sentence(kind.answer.format(about, value)),
                tuple(_sentence(kind.answer.format(about, other)) for other in rng.sample(others, WRONG_ANSWERS)),
            )
        )
    return facts


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
