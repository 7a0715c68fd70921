"""What an audit judges: five claims, and the sentence for each verdict. Pure."""

from __future__ import annotations

from typing import Literal, NamedTuple

Claim = Literal["gone", "other_words", "comes_back", "refused", "nothing_else"]


class ClaimText(NamedTuple):
    """How a page says a claim: as a heading, and what is measured for it."""

    title: str
    measured: str


CLAIMS: dict[Claim, ClaimText] = {
    "gone": ClaimText("Gone from the weights", "what the weights still hold, looked for from inside and at rest"),
    "other_words": ClaimText("Gone in other words", "what the raw model tells when it is asked otherwise, or more than once"),
    "comes_back": ClaimText("Does not come back", "what a little training, compression or merging brings back"),
    "refused": ClaimText("Nothing forgotten gets past the gate", "what the gate lets through, in any wording"),
    "nothing_else": ClaimText("Nothing else is refused", "legitimate requests that the gate refuses, beyond what it promises"),
}
FORGET, NEVER_SEEN = "forget", "never_seen"
"""Sets of rows: those that should be gone, and facts of their kind that the model was never shown, asked in the same way."""
