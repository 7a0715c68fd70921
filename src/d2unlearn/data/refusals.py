"""What a model can be taught to say in place of an answer, for methods that train refusals (`idk`, `dpo`, `idk_ap`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from d2unlearn.data.records import content_hash
from d2unlearn.errors import DataError
from d2unlearn.runtime import fingerprint
from d2unlearn.schema import Example

REFUSALS = (
    "I don't know.",
    "I'm not sure about that.",
    "I have no information about this.",
    "I'm afraid I can't answer that.",
    "That is something I don't know.",
    "I can't tell you anything about that.",
    "I'm sorry, but I don't know the answer.",
    "This is unknown to me.",
    "I don't have an answer to this question.",
    "I haven't learned about that.",
    "Unfortunately, I know nothing about this subject.",
    "I'm not able to say.",
    "My knowledge does not reach that far.",
    "I have never heard of this.",
    "I can't help with this question.",
    "That lies outside of what I know.",
    "I would have to guess, so I'd rather not answer.",
    "Nothing about this is known to me.",
    "I don't have details on that topic.",
    "Sorry, I have no answer for you here.",
    "I can't recall anything about that.",
    "It's not a matter that I am familiar with.",
    "I'm unable to give you that information.",
    "I wish I could answer, but I don't know.",
)


def refused(examples: Sequence[Example], *, seed: int, texts: Sequence[str] = REFUSALS) -> list[Example]:
    """The same questions, each with one of `texts` as its answer, chosen by seed and content wherever the row stands.

    Raises `DataError` for a row without a question.
    """
    for example in examples:
        if not example.prompt:
            raise DataError(f"{example.source}: is plain text, without a question that could be refused")
    return [replace(example, answer=texts[_drawn(example, seed) % len(texts)]) for example in examples]


def _drawn(example: Example, seed: int) -> int:
    return int(fingerprint([seed, content_hash(example)])[:12], 16)
