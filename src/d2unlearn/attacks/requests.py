"""What an attack asks a model, what it is told, and whether that gives the truth away. Pure records.

An attack that asks takes the model as a function of requests (`d2unlearn.attacks.answering` makes them of a guarded model), so
that it can be held against made ones that tell exactly where they should.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from d2unlearn.attacks.reading import Measure, Reading, Setting, group_labels
from d2unlearn.metrics.text import leaked, rouge_l_recall
from d2unlearn.schema import Example, Message


class AttackRequest(NamedTuple):
    """A conversation that ends with the user's turn, and what the answer begins with (text or token ids): the model goes on."""

    messages: tuple[Message, ...]
    beginning: str | tuple[int, ...] = ""


class AttackReply(NamedTuple):
    """What the model added, or the refusal in its place. `reason`: why it could not be asked, empty where it was."""

    text: str
    refused: bool = False
    reason: str = ""


class Attacked(Protocol):
    """Answers conversations in order, each in at most so many new tokens."""

    def __call__(self, asked: Sequence[AttackRequest], max_new_tokens: int) -> Sequence[AttackReply]: ...


class AttackedOften(Protocol):
    """Answers each conversation so many times (samples, beams); one reply, with the reason, where it cannot be asked."""

    def __call__(self, asked: Sequence[AttackRequest], max_new_tokens: int) -> Sequence[Sequence[AttackReply]]: ...


class Admission(Protocol):
    """What a guard says of conversations before anything is answered: the refusal to each, empty where it is let in."""

    def __call__(self, conversations: Sequence[tuple[Message, ...]]) -> Sequence[str]: ...


def plain_request(row: Example) -> AttackRequest:
    """The row as it stands."""
    return AttackRequest(row.prompt)


def recalled(target: str, reply: AttackReply) -> float:
    """ROUGE-L recall of the target in what was said, 0 to 1; a refusal recalls nothing. NaN for a target without words."""
    return 0.0 if reply.refused else rouge_l_recall(target, reply.text)


def told(target: str, reply: AttackReply) -> float:
    """1 where the reply gives the target away, else 0."""
    return leaked(recalled(target, reply))


def reply_reading(
    name: str,
    rows: Sequence[Example],
    setting: Mapping[str, Setting],
    measure: Measure,
    values: Sequence[float],
    replies: Sequence[AttackReply],
) -> Reading:
    """One value and one reply a row, in their order; NaN, and the reason counted, where there is one. `name`: of the set."""
    return Reading(
        dict(setting),
        measure,
        name,
        tuple(row.example_id for row in rows),
        group_labels(rows),
        tuple(math.nan if reply.reason else value for value, reply in zip(values, replies, strict=True)),
        tuple(reply.text for reply in replies),
        dict(Counter(reply.reason for reply in replies if reply.reason)),
    )


def answer_readings(
    name: str,
    rows: Sequence[Example],
    setting: Mapping[str, Setting],
    replies: Sequence[AttackReply],
    measures: Sequence[Measure],
) -> list[Reading]:
    """Of replies to rows one reading a measure: `told`, `refused`, `missed`."""
    refused = [float(reply.refused) for reply in replies]
    values = {
        "told": [told(row.answer, reply) for row, reply in zip(rows, replies, strict=True)],
        "refused": refused,
        "missed": [1 - value for value in refused],
    }
    return [reply_reading(name, rows, setting, measure, values[measure], replies) for measure in measures]
