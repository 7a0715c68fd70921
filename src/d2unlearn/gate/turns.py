"""What a gate looks at of a request beside the whole of it: what the user said, turn by turn and sentence by sentence. Pure.

Another turn, a system message, a greeting or an answer put into the model's mouth moves the energy where the answer begins, so
a forgotten question that stands among them may pass as a part of the whole. By itself it is the kind of request that the gate
was calibrated for. The highest score counts: of the whole prompt with its answer, and of each turn and each sentence with the
beginning of an answer.

It follows from the messages of the request alone, so a client that leaves out or rewrites earlier answers (a refusal among
them) changes none of it. Not looked at by itself: what others are made to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from d2unlearn.gate.sentences import plain_letters, sentences_of
from d2unlearn.schema import Message


def under_system(messages: Sequence[Message], system: str | None) -> tuple[Message, ...]:
    """The conversation under a deployment's system message, where there is one and the conversation has none of its own."""
    own = system is None or any(message.role == "system" for message in messages)
    return tuple(messages) if own else (Message("system", str(system)), *messages)


def turns_by_themselves(
    messages: Sequence[Message], system: str | None = None, *, begun: bool = False, sentences: bool = False
) -> list[tuple[Message, ...]]:
    """Each thing that the user said as a conversation of its own, in order, each once; empty ones are left out.

    system: the message that the gate was calibrated under, under which each stands. What is the request itself, under that
    message and with nothing else, is left out: its prompt is that rendering already. begun: something stands behind the
    messages, the beginning of an answer. sentences: each sentence of a turn, too, and both in plain letters where these are
    others (see `sentences`).
    """
    said = (message.content for message in messages if message.role == "user" and message.content.strip())
    texts = dict.fromkeys(text for turn in said for text in (_looked_at(turn) if sentences else [turn]))
    turns = [under_system([Message("user", text)], system) for text in texts]
    return [turn for turn in turns if begun or turn != tuple(messages)]


def _looked_at(turn: str) -> Iterator[str]:
    """The turn and its sentences, as they are written and in plain letters."""
    for text in (turn, plain_letters(turn)):
        yield text
        yield from sentences_of(text)
