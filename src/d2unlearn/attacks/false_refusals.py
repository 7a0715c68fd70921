"""False refusals: legitimate rows in other words, refused although the model before unlearning answers them so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from d2unlearn.attacks.reading import Reading
from d2unlearn.attacks.wordings import WordingOutcome, wording_readings

NOT_ANSWERED_BEFORE = "the model before does not answer it in this wording either"


def false_refusal_readings(name: str, outcomes: Sequence[WordingOutcome], before: Sequence[WordingOutcome]) -> list[Reading]:
    """Of each wording the refusals, among the rows that the model before, asked the same and raw, answers truly.

    before: of the same rows and wordings, in the same order. What it does not answer cannot be falsely refused: NaN, counted.
    """
    pairs = zip(outcomes, before, strict=True)
    counted = [ours if theirs.told == 1 or ours.reply.reason else _not_counted(ours) for ours, theirs in pairs]
    return wording_readings(name, counted, ("refused",))


def _not_counted(outcome: WordingOutcome) -> WordingOutcome:
    return replace(outcome, reply=outcome.reply._replace(reason=NOT_ANSWERED_BEFORE))
