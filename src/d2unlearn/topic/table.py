"""What a model is asked about a topic, about others of its kind, and about everything else: a committed table of questions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from d2unlearn.runtime import read_json

_TABLE = Path(__file__).with_name("questions.json")


@dataclass(frozen=True)
class TopicKind:
    """A kind of topic: names of it that every model has met, and what is asked of one, each in wordings with `{name}`.

    lists: requests for names that belong to it; the answers are asked about in turn.
    """

    names: tuple[str, ...]
    facets: Mapping[str, tuple[str, ...]]
    lists: tuple[str, ...]


@dataclass(frozen=True)
class TopicTable:
    """The questions. of_thing, of_person: wordings for a name that the model brought up; own: requests for its own questions.

    made_up: names that no model has met, for what it says of any name; people, things: names that may belong to a topic, beside
    those of the kinds; retain, far: questions and requests about other things.
    """

    kinds: Mapping[str, TopicKind]
    of_thing: tuple[str, ...]
    of_person: tuple[str, ...]
    own: tuple[str, ...]
    made_up: tuple[str, ...]
    people: tuple[str, ...]
    things: tuple[str, ...]
    retain: tuple[str, ...]
    far: tuple[str, ...]

    @property
    def wordings(self) -> dict[str, tuple[str, ...]]:
        """Every name of the table, and in which wordings one like it is asked about."""
        of_kinds = {name: kind == "person" for kind, members in self.kinds.items() for name in members.names}
        persons = {**of_kinds, **dict.fromkeys(self.things, False), **dict.fromkeys(self.people, True)}
        return {name: self.of_person if person else self.of_thing for name, person in persons.items()}


def topic_table() -> TopicTable:
    """The committed table."""
    table = read_json(_TABLE)
    kinds = {
        name: TopicKind(
            tuple(kind["names"]), {key: tuple(value) for key, value in kind["facets"].items()}, tuple(kind["lists"])
        )
        for name, kind in table.pop("kinds").items()
    }
    return TopicTable(kinds=kinds, **{name: tuple(texts) for name, texts in table.items()})
