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


def turns_by_themselves(messages: Sequence[Message], *, begun: bool = False) -> list[tuple[Message, ...]]:
    """Each thing that the user said as a conversation of its own, in order, each once; empty ones are left out.

    None for a request that is a single question and nothing else: its prompt is that rendering already. begun: something stands
    behind the messages, the beginning of an answer.
    """
    if not begun and [message.role for message in messages] == ["user"]:
        return []
    said = dict.fromkeys(message.content for message in messages if message.role == "user" and message.content.strip())
    return [(Message("user", text),) for text in said]
