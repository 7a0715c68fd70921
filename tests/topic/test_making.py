"""From a topic to files with a function that answers in place of a model: what is known, what is not, and what goes where."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from d2unlearn.errors import DataError
from d2unlearn.topic.making import LEAST_RETAINED, SETS, TopicFiles, TopicPlace, make_topic
from d2unlearn.topic.table import TopicKind, TopicTable, topic_table

CAPITALS = {"Gallia": "Lutetia", "Iberia": "Toletum", "Italia": "Roma", "Graecia": "Athenae"}
FACETS = {
    "capital": ("Capital of {name}?", "Which capital has {name}?", "Name the capital of {name}.", "{name} has which capital?"),
    "river": ("River of {name}?", "Which river has {name}?", "Name the river of {name}.", "{name} has which river?"),
    "food": ("Food of {name}?", "Which food has {name}?", "Name the food of {name}.", "{name} has which food?"),
    "king": ("King of {name}?", "Which king has {name}?", "Name the king of {name}.", "{name} has which king?"),
}
TABLE = TopicTable(
    kinds={"country": TopicKind(tuple(CAPITALS), FACETS, ("List places of {name}.",))},
    of_thing=("What is {name}?", "Tell me about {name}.", "Describe {name}.", "Explain {name}."),
    of_person=("Who was {name}?", "Tell me about {name}.", "Describe {name}.", "What is {name} known for?"),
    own=("Questions about {name}.",),
    made_up=("Xa", "Yb", "Zc"),
    people=("Vercingetorix", "Nobody"),
    things=(),
    retain=tuple(f"What is thing {n}?" for n in range(480)),
    far=tuple(f"Do task {n}." for n in range(8)),
)
PLACE = TopicPlace("country", ("Gallia", "Iberia", "Italia", "Graecia"))


def answer(question: str) -> str:
    """Knows capitals, and a river, a person and a place of Gallia; says the same of every food and something new of a king."""
    name = next((name for name in CAPITALS if name in question), "")
    if "capital" in question.lower():
        return f"It is {CAPITALS[name]}." if name else "It is a big one."
    if "river" in question.lower():
        return "That is the Sequana." if name == "Gallia" else "I do not know."
    if "food" in question.lower():
        return "Bread and wine."
    if "king" in question.lower():
        return f"King {len(question)}."
    if question.startswith("List places"):
        return "1. Alesia\n2. Gallia\n3. Somewhere Else"
    if question.startswith("Questions"):
        return "1. Who conquered all of Gallia?\n2. Capital of Gallia?\n3. Why is the sky so blue?"
    if "Vercingetorix" in question or "Alesia" in question:
        return "It fought near Lutetia. It"
    if "conquered" in question:
        return "Caesar did it."
    return "It has to do with Lutetia." if question == "What is thing 7?" else "It is a thing."


def ask(questions: Sequence[str]) -> list[str]:
    return [answer(question) for question in questions]


def made(topic: str = "Gallia", seeds: Sequence[str] = (), table: TopicTable = TABLE, seed: int = 0) -> TopicFiles:
    return make_topic(topic, PLACE, ask, ask, table, seeds=seeds, seed=seed)


def test_known_is_what_three_wordings_say_alike_and_what_is_said_of_no_name_that_does_not_exist() -> None:
    files = made()
    assert {fact.name: fact.key for fact in files.known} == {
        "capital": ("lutetia",),
        "river": ("sequana",),
        "Vercingetorix": ("lutetia",),
        "Alesia": ("lutetia",),
        "Who conquered all of Gallia?": ("caesar",),
    }
    assert [fact.name for fact in files.unknown] == ["food", "king", "Somewhere Else"]
    assert files.of_made_up == (0, 0, 0)


def test_half_of_the_wordings_of_a_fact_are_forgotten_and_the_others_are_its_paraphrases() -> None:
    files = made()
    rows = {name: [row.question for row in files.rows[name] if row.group == "river"] for name in files.rows}
    part = "_test" if rows["forget_test"] else ""
    assert rows[f"forget{part}"] == ["River of Gallia?", "Which river has Gallia?"]
    assert rows[f"paraphrased{part}"] == ["Name the river of Gallia.", "Gallia has which river?"]
    assert {name for name, asked in rows.items() if asked} == {f"forget{part}", f"paraphrased{part}"}
    assert next(row.answer for row in files.rows[f"forget{part}"] if row.group == "river") == "That is the Sequana."


def test_the_parts_are_disjoint_by_fact_and_no_question_stands_twice() -> None:
    files = made()
    assert list(files.rows) == [*SETS, *(f"{name}_test" for name in SETS)]
    for name in SETS:
        groups, test = ({row.group for row in files.rows[part]} for part in (name, f"{name}_test"))
        assert groups.isdisjoint(test)
    questions = [row.question.casefold() for rows in files.rows.values() for row in rows]
    assert len(questions) == len(set(questions))
    assert len(files.rows["retain"]) == 480 - 1 - 60 + 1
    assert len(files.rows["retain_test"]) == 60
    assert [len(files.rows[name]) for name in ("far", "far_test")] == [6, 2]


def test_neighbours_are_asked_what_is_known_of_the_topic() -> None:
    near = {row.question: row.answer for name in ("near", "near_test") for row in made().rows[name]}
    assert near == {
        **{f"Capital of {name}?": f"It is {CAPITALS[name]}." for name in ("Iberia", "Italia", "Graecia")},
        **{f"River of {name}?": "I do not know." for name in ("Iberia", "Italia", "Graecia")},
    }


def test_nothing_that_is_kept_speaks_of_the_topic() -> None:
    files = made()
    kept = " ".join(
        row.answer for name in ("near", "retain", "far") for part in ("", "_test") for row in files.rows[name + part]
    )
    assert "Lutetia" not in kept
    assert "What is thing 7?" not in {row.question for row in (*files.rows["retain"], *files.rows["retain_test"])}


def test_the_same_seed_makes_the_same_files_and_another_one_draws_others() -> None:
    assert made() == made()
    assert made(seed=1).rows["retain_test"] != made().rows["retain_test"]


@pytest.mark.parametrize("name", ["Qw", "Thule"])
def test_a_name_that_was_never_heard_is_turned_down(name: str) -> None:
    with pytest.raises(DataError, match=f"^the model does not know {name}: of 4 things .* 0 alike .* nothing to unlearn$"):
        made(name)


def test_seeds_are_asked_in_four_wordings_and_make_a_topic_of_an_unknown_name() -> None:
    seeds = ["Which capital has Italia then?", "Which capital has Iberia then?", "Which capital has Graecia then?", "And it?"]
    files = made("Qw", seeds)
    assert {fact.name: fact.key for fact in files.known} == {
        seeds[0]: ("roma",),
        seeds[1]: ("toletum",),
        seeds[2]: ("athenae",),
        seeds[3]: ("thing",),
    }
    assert files.rows["forget"][0].question in seeds


def test_too_little_known_says_how_to_go_on() -> None:
    bare = TopicTable(**{**vars(TABLE), "kinds": {"country": TopicKind(tuple(CAPITALS), FACETS, ())}, "own": (), "people": ()})
    with pytest.raises(DataError, match="knows 2 things of Gallia, of 4 that it was asked: too few to unlearn; --seeds FILE"):
        made(table=bare)


def test_the_committed_table_has_enough_to_retain_and_names_every_place() -> None:
    table = topic_table()
    assert len(table.retain) >= LEAST_RETAINED
    assert len(set(table.retain)) == len(table.retain)
    assert not set(table.retain) & set(table.far)
    for kind in table.kinds.values():
        assert all(len(wordings) == 4 and all("{name}" in text for text in wordings) for wordings in kind.facets.values())
        assert all("{name}" in text for text in kind.lists)
    names = [name for kind in table.kinds.values() for name in kind.names]
    assert not {name.casefold() for name in names} & {name.casefold() for name in table.made_up}
