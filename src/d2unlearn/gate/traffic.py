"""Real prompts, as a gate that is made sees them: those that look forgotten are listed for a person, and kept nowhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from d2unlearn.data.records import read_prompts
from d2unlearn.errors import GateError
from d2unlearn.schema import Example, Message
from d2unlearn.stats import Floats, conformal_rank

_ANSWERS = ("answer", "completion", "response", "output", "messages")
"""Columns that a file of prompts does not have."""
_SHOWN = 20
"""Prompts that are listed; the others are counted."""


def read_traffic(path: Path) -> list[Example]:
    """A row for each prompt. Raises `GateError` for a file that has answers in it, `DataError` as `read_prompts` does."""
    rows = []
    for where, columns, prompt in read_prompts(path):
        held = next((name for name in _ANSWERS if columns.get(name)), None)
        if held is not None:
            raise GateError(
                f"{where} has a column {held!r}: --traffic takes prompts only; leave what was answered out of the file"
            )
        rows.append(Example(where, (Message("user", prompt),), "", where))
    return rows


def traffic_lines(
    rows: Sequence[Example], scores: Floats, threshold: float, max_false_refusal: float, confidence: float | None
) -> Iterator[str]:
    """How many prompts look forgotten, the first of them, and whether anything is promised for such traffic.

    Those above the threshold are nobody's legitimate requests before a person has said so, so where there are more than the
    promise allows, or too few prompts in all, there is none.
    """
    above = int((scores > threshold).sum())
    yield f"traffic: {above} of {len(rows)} prompts look forgotten and would be refused"
    yield from listed_above(rows, scores, threshold)
    try:
        allowed = len(rows) - conformal_rank(len(rows), max_false_refusal, confidence)
    except GateError as error:
        yield f"  no guarantee for traffic: {error}"
        return
    if above > allowed:
        yield (
            f"  no guarantee for traffic: at most {allowed} may be refused for it; put each of those listed into --forget or "
            "--unrelated, whichever it is"
        )
    else:
        yield f"  guaranteed for traffic like this: at most {allowed} of {len(rows)} may be refused for it"


def listed_above(rows: Sequence[Example], scores: Floats, threshold: float) -> Iterator[str]:
    """The rows whose scores lie above the threshold, the highest first, for a person to look at."""
    above = sorted((row for row in zip(scores.tolist(), rows, strict=True) if row[0] > threshold), key=lambda row: -row[0])
    for score, row in above[:_SHOWN]:
        yield f"  {row.source} (score {score:.3f}): {row.question[:80]!r}"
    if len(above) > _SHOWN:
        yield f"  and {len(above) - _SHOWN} more"
