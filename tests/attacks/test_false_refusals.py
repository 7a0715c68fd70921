"""A refusal counts against the gate only where the model before answered the same request truly."""

from __future__ import annotations

import math

from d2unlearn.attacks.false_refusals import NOT_ANSWERED_BEFORE, false_refusal_readings
from d2unlearn.attacks.requests import AttackReply
from d2unlearn.attacks.wordings import WordingOutcome
from d2unlearn.schema import Example, Message
from d2unlearn.wordings.wording import AS_IT_IS

ROWS = [Example(f"row-{i}", (Message("user", f"Q{i}?"),), "It is in Oslo.", f"rows:{i}", "g") for i in range(5)]
YES, NO, REFUSED = AttackReply("It is in Oslo."), AttackReply("Hm."), AttackReply("Sorry.", refused=True)


def outcomes(*replies: AttackReply) -> list[WordingOutcome]:
    return [WordingOutcome(row, AS_IT_IS, row.answer, reply) for row, reply in zip(ROWS, replies, strict=True)]


def test_refusals_among_what_was_answered_before() -> None:
    long = AttackReply("", reason="too long")
    ours, before = outcomes(REFUSED, YES, REFUSED, long, NO), outcomes(YES, YES, NO, long, NO)
    (made,) = false_refusal_readings("retain", ours, before)
    assert (made.measure, made.rows, made.mean) == ("refused", "retain", 0.5)
    assert made.values[:2] == (1.0, 0.0)
    assert all(map(math.isnan, made.values[2:]))
    assert made.not_asked == {NOT_ANSWERED_BEFORE: 2, "too long": 1}
