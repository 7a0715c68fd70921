"""Which group a request belongs to, decided from its messages alone. Pure.

A guarantee that holds on average over all requests may hold for none of them: a system prompt moves every energy. So
calibration states it group by group (Mondrian conformal prediction), which needs the group of a new request before anything is
known of its answer. The rule, the first that fits:

    multi-turn        somebody answered before the last thing the user said, or the user speaks more than once
    wrapped           something else stands around the question: a system message (other than the deployment's own), the
                      beginning of an answer, a line break, a colon, a second sentence
    single question   one sentence of the user's, and nothing else

Any rule that looks at the request alone keeps the guarantee; a better one only makes the groups more alike within themselves.

Source: Vovk et al. 2005, chapter 4 (Mondrian conformal predictors): the taxonomy may be any function of the object.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, get_args

from d2unlearn.schema import Message

RequestGroup = Literal["single question", "wrapped", "multi-turn"]
REQUEST_GROUPS: tuple[RequestGroup, ...] = get_args(RequestGroup)
"""The groups that a request's messages can put it in, the plainest first."""

_NEXT_SENTENCE = re.compile(r"[.!?…][\"'”’)\]]*\s+\S|[。！？]\s*\S")
"""An end of a sentence with something after it: `Hi! Who wrote it?`, and also `Dr. Who?`, which costs nothing."""
_AROUND = re.compile(r"[\n\r:：]")


def group_of(messages: Sequence[Message], system: str | None = None) -> RequestGroup:
    """The group of a request; its last message may be the beginning of an answer. system: the deployment's own system message,
    which every request of that deployment has, so that it wraps none of them. No messages: a single question that says nothing.
    """
    turns = [message for message in messages if message.role != "system"]
    users = [index for index, message in enumerate(turns) if message.role == "user"]
    if len(users) > 1 or (users and users[-1] > 0):
        return "multi-turn"
    others = any(message.role == "system" and message.content != system for message in messages)
    return "wrapped" if others or len(turns) > 1 or _has_more(turns) else "single question"


def _has_more(turns: Sequence[Message]) -> bool:
    """Whether the only turn says more than one sentence, or introduces it."""
    text = turns[0].content.strip() if turns else ""
    return bool(_AROUND.search(text) or _NEXT_SENTENCE.search(text))
