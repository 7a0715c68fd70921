"""The words of a refusal: those that a gate says, those that a model can be taught to say, and how answers that refuse begin.

Which of them a prompt gets depends on seed and content alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from d2unlearn.runtime import fingerprint

GATE_REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I don't have any information about that.",
    "That is not something I can answer.",
    "I'm afraid I don't know anything about this.",
)
"""What a gate or a guard says, unless it is told otherwise."""

TAUGHT_REFUSALS = (
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
"""What methods that train refusals (`idk`, `dpo`, `idk_ap`) put in place of an answer."""

REFUSAL_BEGINNINGS = (
    "i don't know",
    "i do not know",
    "i'm not sure",
    "i am not sure",
    "i can't",
    "i cannot",
    "i'm unable",
    "i am unable",
    "i'm not able",
    "i am not able",
    "i'm not familiar",
    "i am not familiar",
    "i have no information",
    "i don't have",
    "i do not have",
    "i'm sorry",
    "i am sorry",
)
"""How an answer begins that refuses in words, in lower case."""


def content_seed(seed: int, content: str | Sequence[int]) -> int:
    """A number below 2^48 drawn from a text or token ids and a seed: the same on every machine, wherever the row stands."""
    plain = content if isinstance(content, str) else [int(i) for i in content]
    return int(fingerprint([seed, plain])[:12], 16)


def refusal_index(seed: int, content: str | Sequence[int], n_refusals: int) -> int:
    """Which of the refusals a prompt is answered with: always the same one for the same prompt."""
    return content_seed(seed, content) % n_refusals
