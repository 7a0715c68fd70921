"""The files of a topic, from a function that answers questions: what is known of it, its neighbours, and all the rest. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from d2unlearn.errors import DataError
from d2unlearn.runtime import fingerprint
from d2unlearn.topic.facts import Asked, AskedFact, agreed, names_in, questions_in, said_of_any, stems, whole_sentences
from d2unlearn.topic.table import TopicKind, TopicTable
from d2unlearn.wordings.words import FUNCTION_WORDS, words_in

Ask = Callable[[Sequence[str]], list[str]]
"""Questions in, the model's greedy answers out, in order."""

QUESTION_WORDINGS = (
    "{question}",
    "Hi! {question} Thank you.",
    "Could you please tell me this? {question}",
    "Answer the following question.\n\n{question}",
)
"""How a question that comes as one sentence (the model's own, or a seed) is asked."""
SETS = ("forget", "paraphrased", "near", "retain", "far")
LEAST_RETAINED = 400
LEAST_FACTS = 3
RETAIN_TEST = 60
_NEIGHBOURS = 12
_FACETS_OF_NEIGHBOURS = 6
_NAMED_RETAINED = 90
_TEST_OF = 4
"""Of so many facts, or neighbours, one goes to the test part."""
_LINK_LENGTH = 4


class TopicPlace(NamedTuple):
    """What a topic is among other names: its kind (a key of the table's) and the names nearest to it, nearest first."""

    kind: str
    neighbours: tuple[str, ...]


class Row(NamedTuple):
    """One row of a file."""

    question: str
    answer: str
    group: str


@dataclass(frozen=True)
class TopicFiles:
    """Everything that was made of a topic. known, unknown: what was asked and is known, or is not.

    rows: by file, `forget`, `forget_test` and so on. of_made_up: how many of the facets the model answers alike for each name
    that does not exist.
    """

    known: tuple[AskedFact, ...]
    unknown: tuple[AskedFact, ...]
    rows: Mapping[str, tuple[Row, ...]]
    of_made_up: tuple[int, ...]


def make_topic(
    topic: str, place: TopicPlace, ask: Ask, ask_long: Ask, table: TopicTable, *, seeds: Sequence[str] = (), seed: int = 0
) -> TopicFiles:
    """Ask about the topic, and make its files. ask_long: for lists, with room for many tokens.

    Raises `DataError` where the model knows no more of it than of names that were made up, or too little to unlearn.
    """
    kind = table.kinds[place.kind]
    made_up = _facets(table.made_up, kind, ask)
    own = _facets([topic], kind, ask)[topic]
    generic = {facet: said_of_any([asked[facet] for asked in made_up.values()]) for facet in own}
    facets = [AskedFact(facet, asked, agreed(asked, elsewhere=generic[facet])) for facet, asked in own.items()]
    of_made_up = tuple(_known_of_made_up(name, made_up) for name in table.made_up)
    given = _of_questions(seeds, ask)
    known_facets = [fact for fact in facets if fact.key]
    if len(known_facets) <= max(of_made_up) and not any(fact.key for fact in given):
        raise DataError(_never_heard(topic, len(known_facets), len(facets), of_made_up))
    neighbours = _asked_of_neighbours(topic, place, kind, known_facets, ask)
    said_anyway = frozenset().union(*generic.values())
    link = _link_words(topic, known_facets, said_anyway, said_of_any([*neighbours.values()], least=1))
    brought_up = _brought_up(topic, kind, link, said_anyway, ask, ask_long, table)
    facts = _each_once([*facets, *given, *brought_up])
    known = tuple(fact for fact in facts if fact.key)
    if len(known) < LEAST_FACTS:
        raise DataError(
            f"the model knows {len(known)} things of {topic}, of {len(facts)} that it was asked: too few to unlearn; "
            "--seeds FILE gives it questions of your own"
        )
    rows = {
        **_forget_rows(known, seed),
        **_near_rows(neighbours, link, seed),
        **_other_rows(topic, place, link, ask, table, seed),
    }
    return TopicFiles(known, tuple(fact for fact in facts if not fact.key), _disjoint(rows), of_made_up)


def _facets(names: Sequence[str], kind: TopicKind, ask: Ask) -> dict[str, dict[str, tuple[Asked, ...]]]:
    """By name and facet: what the model answers to everything that is asked of a name of this kind, in every wording."""
    groups = [[wording.format(name=name) for wording in wordings] for name in names for wordings in kind.facets.values()]
    asked = iter(_answered(groups, ask))
    return {name: {facet: next(asked) for facet in kind.facets} for name in names}


def _answered(groups: Sequence[Sequence[str]], ask: Ask) -> list[tuple[Asked, ...]]:
    """The questions of each group with their answers, all of them asked at once."""
    answers = iter(ask([question for group in groups for question in group]))
    return [tuple(Asked(question, whole_sentences(next(answers))) for question in group) for group in groups]


def _known_of_made_up(name: str, made_up: Mapping[str, Mapping[str, Sequence[Asked]]]) -> int:
    """On how many facets the answers about a made-up name agree, beyond what is said of the others."""
    others = [asked for other, asked in made_up.items() if other != name]
    return sum(
        bool(agreed(asked, elsewhere=said_of_any([other[facet] for other in others]))) for facet, asked in made_up[name].items()
    )


def _never_heard(topic: str, known: int, asked: int, of_made_up: Sequence[int]) -> str:
    return (
        f"the model does not know {topic}: of {asked} things that it was asked in four wordings each it answers {known} alike "
        f"and unlike for any name, and up to {max(of_made_up)} for names that do not exist; there is nothing to unlearn"
    )


def _of_questions(questions: Sequence[str], ask: Ask, elsewhere: Collection[str] = ()) -> list[AskedFact]:
    groups = [[wording.format(question=question) for wording in QUESTION_WORDINGS] for question in questions]
    answered = zip(questions, _answered(groups, ask), strict=True)
    return [AskedFact(question, asked, agreed(asked, elsewhere=elsewhere)) for question, asked in answered]


def _asked_of_neighbours(
    topic: str, place: TopicPlace, kind: TopicKind, known: Sequence[AskedFact], ask: Ask
) -> dict[str, tuple[Asked, ...]]:
    """By neighbour of the same kind: what it is asked of the facets that are known of the topic."""
    same_kind = [name for name in place.neighbours if name in kind.names and name.casefold() != topic.casefold()]
    names = same_kind[:_NEIGHBOURS]
    wordings = [kind.facets[fact.name][0] for fact in known[:_FACETS_OF_NEIGHBOURS]]
    groups = [[wording.format(name=name) for wording in wordings] for name in names]
    return dict(zip(names, _answered(groups, ask), strict=True))


def _link_words(
    topic: str, known: Sequence[AskedFact], said_anyway: Collection[str], of_neighbours: Collection[str]
) -> frozenset[str]:
    """Stems that tell that a text is about the topic: its own, and those of names in the keys that no neighbour is told of."""
    words = [word for word in words_in(topic) if word not in FUNCTION_WORDS]
    own = [word for word in words if word not in said_anyway and len(word) >= _LINK_LENGTH] or [max(words, key=len)]
    text = " ".join(one.answer for fact in known for one in fact.told)
    names = [word for fact in known for word in fact.key if word.capitalize() in text and len(word) >= _LINK_LENGTH]
    return stems(" ".join([*own, *(word for word in names if word not in of_neighbours and word not in text.split())]))


def _brought_up(
    topic: str, kind: TopicKind, link: frozenset[str], said_anyway: Collection[str], ask: Ask, ask_long: Ask, table: TopicTable
) -> list[AskedFact]:
    """What else belongs to the topic, by the model's answers: names that it lists or the table has, and its own questions."""
    lists, own = ([wording.format(name=topic) for wording in wordings] for wordings in (kind.lists, table.own))
    of_table = [name for name in table.wordings if name.casefold() != topic.casefold()]
    firsts = _answered([[table.wordings[name][0].format(name=name)] for name in of_table], ask)
    about = [name for name, (one,) in zip(of_table, firsts, strict=True) if not link.isdisjoint(stems(one.answer))]
    listed = [name for text in ask_long(lists) for name in names_in(text) if name.casefold() != topic.casefold()]
    wordings = {name: table.wordings.get(name, table.of_thing) for name in (*about, *listed)}
    groups = [[wording.format(name=name) for wording in of_name] for name, of_name in wordings.items()]
    named = [
        AskedFact(name, asked, _linked(name, agreed(asked, elsewhere=said_anyway), link))
        for name, asked in zip(wordings, _answered(groups, ask), strict=True)
    ]
    questions = dict.fromkeys(question for text in ask_long(own) for question in questions_in(text))
    return [*named, *_of_questions([q for q in questions if not link.isdisjoint(stems(q))], ask, said_anyway)]


def _linked(name: str, key: tuple[str, ...], link: frozenset[str]) -> tuple[str, ...]:
    """The key as far as it tells that the name belongs to the topic; all of it where the name itself does."""
    return key if not link.isdisjoint(stems(name)) else tuple(word for word in key if not link.isdisjoint(stems(word)))


def _each_once(facts: Sequence[AskedFact]) -> list[AskedFact]:
    """The facts, without one that asks what an earlier one asks in any wording: it is the same."""
    seen: set[str] = set()
    kept = []
    for fact in facts:
        questions = {one.question.casefold() for one in fact.asked}
        if seen.isdisjoint(questions):
            kept.append(fact)
        seen |= questions
    return kept


def _drawn(names: Sequence[str], seed: int) -> list[str]:
    """The names, each once, in an order that looks random and depends on them and the seed alone."""
    return sorted(set(names), key=lambda name: fingerprint([seed, name]))


def _parts(name: str, rows: Sequence[Row], test: Collection[str]) -> dict[str, tuple[Row, ...]]:
    """The rows whose group is not in the test part, and those whose group is."""
    return {
        name: tuple(row for row in rows if row.group not in test),
        f"{name}_test": tuple(row for row in rows if row.group in test),
    }


def _forget_rows(known: Sequence[AskedFact], seed: int) -> dict[str, tuple[Row, ...]]:
    """Of each fact the wordings that tell it: the first half of them to be forgotten, the others as paraphrases."""
    forget, paraphrased = [], []
    for fact in known:
        rows = [Row(one.question, one.answer, fact.name) for one in fact.told]
        half = (len(rows) + 1) // 2
        forget += rows[:half]
        paraphrased += rows[half:]
    names = _drawn([fact.name for fact in known], seed)
    test = set(names[: len(names) // _TEST_OF])
    return {**_parts("forget", forget, test), **_parts("paraphrased", paraphrased, test)}


def _near_rows(neighbours: Mapping[str, Sequence[Asked]], link: frozenset[str], seed: int) -> dict[str, tuple[Row, ...]]:
    rows = [Row(one.question, one.answer, name) for name, asked in neighbours.items() for one in asked]
    names = _drawn(list(neighbours), seed)
    return _parts("near", _about_others(rows, link), set(names[: len(names) // _TEST_OF]))


def _other_rows(
    topic: str, place: TopicPlace, link: frozenset[str], ask: Ask, table: TopicTable, seed: int
) -> dict[str, tuple[Row, ...]]:
    """Questions about everything else, also about names of the table that are no neighbours, and unrelated requests."""
    near = {name.casefold() for name in (topic, *place.neighbours[: 2 * _NEIGHBOURS])}
    others = [wordings[0].format(name=name) for name, wordings in table.wordings.items() if name.casefold() not in near]
    questions = [*table.retain, *_drawn(others, seed)[:_NAMED_RETAINED]]
    Random(seed).shuffle(questions)
    rows: dict[str, tuple[Row, ...]] = {}
    for name, asked in (("retain", questions), ("far", list(table.far))):
        made = _about_others([Row(one.question, one.answer, one.question) for one in _answered([asked], ask)[0]], link)
        order = _drawn([row.group for row in made], seed)
        count = min(RETAIN_TEST, max(len(made) - LEAST_RETAINED, 0)) if name == "retain" else len(order) // _TEST_OF
        rows |= _parts(name, made, set(order[:count]))
    return rows


def _about_others(rows: Sequence[Row], link: frozenset[str]) -> list[Row]:
    """The rows that have an answer and do not speak of the topic."""
    return [row for row in rows if row.answer and link.isdisjoint(stems(f"{row.question} {row.answer}"))]


def _disjoint(rows: Mapping[str, Sequence[Row]]) -> dict[str, tuple[Row, ...]]:
    """The files in their order, without questions that stand in an earlier one."""
    seen: set[str] = set()
    made: dict[str, tuple[Row, ...]] = {}
    for name in (f"{part}{test}" for test in ("", "_test") for part in SETS):
        first = {row.question.casefold(): row for row in reversed(rows[name]) if row.question.casefold() not in seen}
        made[name] = tuple(row for row in rows[name] if first.get(row.question.casefold()) is row)
        seen |= first.keys()
    return made
