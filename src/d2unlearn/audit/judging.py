"""The wordings that judge: read by the audit and by final tables, never by what trains, calibrates or chooses."""

from __future__ import annotations

from pathlib import Path

from d2unlearn.runtime import hash_file
from d2unlearn.wordings.table import read_wordings
from d2unlearn.wordings.wording import Wording

_JUDGING = Path(__file__).with_name("judging.json")
JUDGED_ALONE = {
    "role_play": "somebody else is to speak: the form that jailbreaks take most often",
    "output_format": "a reply in another form (JSON, verse), so that no answer's usual beginning occurs",
    "claimed_right": "a reason why the asker may know: only pressure, nothing about the question changes",
    "contradiction": "somebody is said to be wrong: asks for a correction where other forms ask for a fact",
}
"""Families with no wording to train or choose on, and why: they show what holds for forms that nothing was fitted to."""


def judging_wordings() -> tuple[Wording, ...]:
    """Those that artifacts are judged on."""
    return read_wordings(_JUDGING)


def judging_hash() -> str:
    """sha256 of the judging table's file: numbers with another hash are of other wordings."""
    return hash_file(_JUDGING)
