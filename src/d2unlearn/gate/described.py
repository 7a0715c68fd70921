"""A calibration in lines for a person: what was chosen and why, a picture, what is promised to whom, what is missed. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from d2unlearn.gate.calibrate import Calibration
from d2unlearn.gate.choice import Candidate
from d2unlearn.gate.picture import score_picture
from d2unlearn.schema import Interval


def described_calibration(measured: Calibration, max_false_refusal: float, guarantee: str) -> Iterator[str]:
    """guarantee: the sentence for requests like the legitimate rows."""
    for candidate in measured.candidates:
        yield _candidate_line(candidate, candidate.name == measured.name, max_false_refusal)
    if measured.reason:
        apart = " (chosen on rows that set no threshold)" if measured.apart else ""
        yield f"why this score: {measured.reason}{apart}"
    how = "raised by forget prompts from" if measured.threshold > measured.conformal_threshold else "the conformal value:"
    n = len(measured.calibration_scores)
    yield (
        f"score {measured.name}, threshold {measured.threshold:.4f} ({how} {measured.conformal_threshold:.4f}, rank "
        f"{measured.rank} of {n})"
    )
    yield from score_picture(measured.calibration_scores, measured.forget_scores, measured.threshold)
    yield f"guarantee: {guarantee}"
    for group in measured.groups:
        refused = "" if group.refused is None else f"; refused in the worst wording {_percent(group.refused)}"
        lead = f"; scores raised by {group.lead:.4f}" if group.lead else ""
        yield f"  {group.group:<16} {group.said}{refused}{lead}"
    yield f"retained prompts refused: {_percent(measured.validation_false_refusal)} of those that chose the score"
    if measured.miss_rate is not None:
        folds = "cross-fitted over groups" if measured.grouped else "cross-fitted; rows taken as independent, no groups"
        yield f"forget prompts missed: {_percent(measured.miss_rate)}, {folds}"
    yield from _family_lines(measured, max_false_refusal)


def _candidate_line(candidate: Candidate, chosen: bool, max_false_refusal: float) -> str:
    gap = "" if candidate.gap is None else f"gap {candidate.gap:6.2f} ±{candidate.gap_error:.2f}   "
    return (
        f"{'*' if chosen else ' '} {candidate.name:<17} {gap}AUROC {candidate.auroc:.4f}   false refusals at 95% caught "
        f"{candidate.fpr_at_95_tpr:.2%}   missed at {max_false_refusal:.1%} {candidate.missed:.2%}"
    )


def _family_lines(measured: Calibration, max_false_refusal: float) -> Iterator[str]:
    """A table of the families on held-out rows, then what breaks and what was left out."""
    if len(measured.families) > 1:
        yield "by wording, on rows held out:  legitimate refused   forgotten passed   forgotten told"
        for rates in measured.families:
            cells = "".join(f"{_cell(share):>19}" for share in (rates.refused, rates.missed, rates.leaked))
            yield f"  {rates.family:<24}{cells}"
    for rates in measured.families:
        for warning in rates.warnings(max_false_refusal):
            yield f"warning: {warning}"
    if measured.left_out:
        names = ", ".join(measured.left_out)
        yield f"forgotten not asked, for there the model answers fewer than half of what it knows: {names}"


def _cell(share: Interval | None) -> str:
    return "-" if share is None else f"{share.value:.1%} of {share.n}"


def _percent(share: Interval) -> str:
    return f"{share.value:.2%} (95% interval {share.low:.2%} to {share.high:.2%}, n = {share.n})"
