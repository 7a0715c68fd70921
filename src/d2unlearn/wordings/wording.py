"""One row, asked in another way: a conversation in steps, made from the row, a wording and what else the wording needs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Literal, get_args

from d2unlearn.errors import ConfigError
from d2unlearn.schema import Example, Message
from d2unlearn.wordings.changes import CHANGES
from d2unlearn.wordings.words import Gap, new_words, with_gap, words_in

Target = Literal["answer", "rest", "gap", "key", "question"]
"""What would give the truth away.

answer      the row's answer
rest        the answer without its first words, which the conversation gives
gap         the words that stood where the sentence has its gap
key         the answer's words that the conversation does not give, without function words: for replies in another form
question    the question's words that the conversation does not give, without function words: for asking backwards
"""
LEAST_REST = 3
"""Words that must be left of an answer after its first words were given away."""
FIRST_WORDS = 3
"""Words of the answer that a wording gives away where it does not say how many."""
_FIELD = re.compile(r"\{(question|answer|start|cloze|(benign|forgotten)_(question|answer)_([1-9]))\}")
_BRACES = re.compile(r"\{\w*\}")


@dataclass(frozen=True)
class Wording:
    """A way to ask. `steps`: what is said, in order, as templates; the row's earlier turns stand before them.

    The model itself answers between two user turns that follow each other. An assistant turn after a user turn is given, and
    one at the end is the beginning of the answer, which the model continues. Fields of a template: `{question}` and `{answer}`,
    `{start}`, the answer's first `words` words, `{cloze}`, the answer with a gap, and `{benign_question_1}`,
    `{forgotten_answer_2}` and so on, of pairs that are passed in. `changes` (names of `CHANGES`) are made to the question.
    `after_refusal`: it asks again, which behind a gate counts only where the answer before was a refusal. `set`: which of the
    disjoint sets it stands in. Raises `ConfigError` for one that cannot be.
    """

    name: str
    family: str
    set: str
    steps: tuple[Message, ...]
    changes: tuple[str, ...] = ()
    words: int | None = None
    target: Target = "answer"
    after_refusal: bool = False

    def __post_init__(self) -> None:
        mistakes = [f"wording {self.name!r}: {said}" for said in self._mistakes()]
        if mistakes:
            raise ConfigError(mistakes)

    @property
    def text(self) -> str:
        """All that is said, as templates, a turn a line."""
        return "\n".join(step.content for step in self.steps)

    def pairs(self, kind: str) -> int:
        """How many pairs of a kind (`benign` or `forgotten`) must be passed in."""
        return max((int(match[4]) for match in _FIELD.finditer(self.text) if match[2] == kind), default=0)

    def _mistakes(self) -> list[str]:
        roles = [step.role for step in self.steps]
        unknown = sorted({text for text in _BRACES.findall(self.text) if not _FIELD.fullmatch(text)})
        changes = [name for name in self.changes if name not in CHANGES]
        needed = {"rest": "{start}", "gap": "{cloze}"}.get(self.target, "")
        wrong = {
            "a wording needs a name, a family and a set": not (self.name and self.family and self.set),
            "steps are system, user and assistant turns": not set(roles) <= {"system", "user", "assistant"},
            "a system message comes first and once": "system" in roles[1:],
            "an assistant turn follows a user turn": any(
                role == "assistant" and before != "user" for before, role in zip(["", *roles], roles, strict=False)
            ),
            "nobody asks anything": "user" not in roles,
            f"fields that are not known: {', '.join(unknown)}": bool(unknown),
            f"changes that are not known: {', '.join(changes)}": bool(changes),
            f"a target is one of {', '.join(get_args(Target))}": self.target not in get_args(Target),
            f"its target needs the field {needed}": needed not in self.text,
            "the first words must be at least one": self.words is not None and self.words < 1,
            "what is asked after a refusal needs an answer of the model before": self.after_refusal
            and ("user", "user") not in pairwise(roles),
        }
        return [said for said, is_wrong in wrong.items() if is_wrong]


@dataclass(frozen=True)
class Material:
    """What wordings are filled with beside the row: pairs of question and answer. The row itself is never one of them."""

    benign: Sequence[Example] = ()
    forgotten: Sequence[Example] = ()


@dataclass(frozen=True)
class Reworded:
    """A row in a wording. `stages`: what is said before the model speaks, again and again; each ends with the user's turn.

    `beginning`: what the last answer begins with, empty for none. `target`: the text whose words give the truth away.
    """

    stages: tuple[tuple[Message, ...], ...]
    beginning: str
    target: str

    @property
    def given(self) -> str:
        """All that is said to the model."""
        said = [message.content for stage in self.stages for message in stage]
        return "\n".join([*said, self.beginning])


@dataclass(frozen=True)
class NotAsked:
    """A row that cannot be asked in a wording, and why."""

    reason: str


class _Lacks(Exception):
    """What a row or the material has not got."""


AS_IT_IS = Wording("plain", "plain", "none", (Message("user", "{question}"),))
"""The row as it is: what the others are held against. In no set."""


def reworded(
    wording: Wording, example: Example, material: Material | None = None, *, seed: int = 0, words: int = FIRST_WORDS
) -> Reworded | NotAsked:
    """The row's conversation in that wording. The same row, wording, material and seed give the same text.

    words: how many of the answer's first words a wording gives away that leaves it open. A system message of the wording takes
    the place of the row's own.
    """
    try:
        return _reworded(wording, example, material or Material(), seed, wording.words or words)
    except _Lacks as lack:
        return NotAsked(str(lack))


def _reworded(wording: Wording, example: Example, material: Material, seed: int, words: int) -> Reworded:
    if not example.question:
        raise _Lacks("the row asks nothing: it is plain text")
    rng = Random(f"{seed}\n{wording.name}\n{example.question}\n{example.answer}")
    fields = _fields(wording, example, material, words, rng)
    steps = [Message(step.role, _filled(step.content, fields)) for step in wording.steps]
    beginning = steps.pop().content if steps[-1].role == "assistant" else ""
    unaimed = Reworded(_stages(_conversation(example, steps)), beginning, "")
    return Reworded(unaimed.stages, beginning, _target(wording.target, example, unaimed.given, words))


def _fields(wording: Wording, example: Example, material: Material, words: int, rng: Random) -> dict[str, str]:
    """What stands for each field that the wording has."""
    question = example.question
    for name in wording.changes:
        question = CHANGES[name](question, rng)
    fields = {"question": question, "answer": example.answer}
    if "{start}" in wording.text:
        fields["start"] = " ".join(_split(example, words)[0])
    if "{cloze}" in wording.text:
        fields["cloze"] = _cloze(example).shown
    for kind, rows in (("benign", material.benign), ("forgotten", material.forgotten)):
        for index, pair in enumerate(_drawn(rows, example, wording.pairs(kind), kind, rng), start=1):
            fields |= {f"{kind}_question_{index}": pair.question, f"{kind}_answer_{index}": pair.answer}
    return fields


def _filled(template: str, fields: Mapping[str, str]) -> str:
    """The template with its fields replaced at once, so that braces in a row's text stay what they are."""
    return _FIELD.sub(lambda match: fields[match[1]], template)


def _split(example: Example, words: int) -> tuple[list[str], list[str]]:
    """The answer's first words and the rest."""
    pieces = example.answer.split()
    if len(pieces) < words + LEAST_REST:
        raise _Lacks(f"the answer has fewer than {words + LEAST_REST} words: {words} to give away and {LEAST_REST} to ask for")
    return pieces[:words], pieces[words:]


def _cloze(example: Example) -> Gap:
    gap = with_gap(example.answer, example.question)
    if gap is None:
        raise _Lacks("the answer has no words of its own to leave out")
    return gap


def _drawn(rows: Sequence[Example], example: Example, count: int, kind: str, rng: Random) -> list[Example]:
    """So many pairs of other groups than the row's (other questions where it has no group)."""
    if not count:
        return []
    others = [
        row
        for row in rows
        if row.question and row.question != example.question and (example.group is None or row.group != example.group)
    ]
    if len(others) < count:
        raise _Lacks(f"{count} {kind} pairs of other groups are needed, {len(others)} were given")
    return rng.sample(others, count)


def _conversation(example: Example, steps: Sequence[Message]) -> list[Message]:
    """The row's turns before its question, then the steps; a system message among these comes first and replaces the row's."""
    last = max(index for index, message in enumerate(example.prompt) if message.role == "user")
    earlier = list(example.prompt[:last])
    if steps[0].role != "system":
        return [*earlier, *steps]
    return [steps[0], *(message for message in earlier if message.role != "system"), *steps[1:]]


def _stages(messages: Sequence[Message]) -> tuple[tuple[Message, ...], ...]:
    """The conversation, cut where the model itself answers: between two user turns."""
    stages: list[list[Message]] = [[]]
    for message in messages:
        if message.role == "user" and stages[-1] and stages[-1][-1].role == "user":
            stages.append([])
        stages[-1].append(message)
    return tuple(map(tuple, stages))


def _target(target: Target, example: Example, given: str, words: int) -> str:
    match target:
        case "answer":
            text = example.answer
        case "rest":
            text = " ".join(_split(example, words)[1])
        case "gap":
            text = _cloze(example).hidden
        case "key":
            text = " ".join(new_words(example.answer, given))
        case "question":
            text = " ".join(new_words(example.question, given))
    if not words_in(text):
        raise _Lacks("nothing is left to be told: the request gives it, or it has no Latin letters or digits")
    return text
