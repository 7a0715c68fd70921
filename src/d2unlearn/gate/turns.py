"""What a gate looks at of a conversation beside the whole of it: each thing that the user said, as a question by itself. Pure.

Another turn, a system message or an answer put into the model's mouth moves the energy where the answer begins, so a forgotten
question that stands among them may pass as a part of the whole. By itself it is the kind of request that the gate was
calibrated for. The highest score counts: of the whole prompt with its answer, and of each turn with the beginning of an answer.

It follows from the messages of the request alone, so a client that leaves out or rewrites earlier answers (a refusal among
them) changes none of the turns. Not looked at by itself: what others are made to say, and parts of a turn.
"""

from __future__ import annotations

from collections.abc import Sequence

from d2unlearn.schema import Message


def under_system(messages: Sequence[Message], system: str | None) -> tuple[Message, ...]:
    """The conversation under a deployment's system message, where there is one and the conversation has none of its own."""
    own = system is None or any(message.role == "system" for message in messages)
    return tuple(messages) if own else (Message("system", str(system)), *messages)


def turns_by_themselves(
    messages: Sequence[Message], system: str | None = None, *, begun: bool = False
) -> list[tuple[Message, ...]]:
    """Each thing that the user said as a conversation of its own, in order, each once; empty ones are left out.

    system: the message that the gate was calibrated under, under which each stands. No turns of a request that is a single
    question under that message and nothing else: its prompt is that rendering already. begun: something stands behind the
    messages, the beginning of an answer.
    """
    said = dict.fromkeys(message.content for message in messages if message.role == "user" and message.content.strip())
    turns = [under_system([Message("user", text)], system) for text in said]
    return [] if not begun and turns == [tuple(messages)] else turns
