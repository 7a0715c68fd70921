"""The tables of an analysis: every detector with its intervals, what each threshold refuses, perturbations, costs. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from d2unlearn.analysis.records import (
    Analysis,
    DetectorCost,
    DetectorSummary,
    Estimate,
    ModelTrial,
    PerturbationResult,
    Placement,
)
from d2unlearn.analysis.roc import ROC_STATISTICS
from d2unlearn.analysis.significance import (
    ROLES,
    Significance,
    pair_of,
    refusal_significance,
    refusals_of,
    significance,
)
from d2unlearn.report.notation import NOT_SCORED, fixed, percent, readable, stated
from d2unlearn.report.tables import ARROWS
from d2unlearn.schema import Kind

PLACEMENT_WORDS: Mapping[Placement, str] = {
    "conformal": "from calibration alone",
    "raised": "raised into the gap to forget",
}


@dataclass(frozen=True)
class Chip:
    """One number; `shade` (0 to 1) is how strongly it is tinted, `tone` its CSS class."""

    text: str
    interval: str = ""
    tone: str = ""
    shade: float = 0.0


Cells = tuple[tuple[Chip, ...], ...]
"""One or two chips a column."""


@dataclass(frozen=True)
class DetectorRow:
    """`label`: within its group; `own`: it is the base detector."""

    label: str
    note: str
    own: bool
    cells: Cells


@dataclass(frozen=True)
class RowGroup:
    """The detectors that read the same."""

    title: str
    lines: tuple[DetectorRow, ...]


@dataclass(frozen=True)
class DetectorTable:
    """heads: (label, arrow, what the arrow says), empty arrow for none."""

    title: str
    heads: tuple[tuple[str, str, str], ...]
    groups: tuple[RowGroup, ...]


def detector_table(analysis: Analysis, trial: ModelTrial, forget: str, retain: str, rate: float) -> DetectorTable:
    """All statistics of one pair, the distance to the base detector, and what is decided wrongly at a rate."""
    separations, refusals = pair_of(trial, forget, retain), refusals_of(trial, rate)
    first, *others = ((statistic.label, *ARROWS[statistic.better]) for statistic in ROC_STATISTICS.values())
    decided = ((f"{what} at {stated(rate)}", *ARROWS["lower"]) for what in ("missed", "refused wrongly"))
    heads = (first, ("less the reference’s", "", ""), *decided, *others)

    def cells(detector: DetectorSummary) -> Cells:
        separation, refused = separations[detector.name], refusals[detector.name].refused
        auroc, *more = (
            value_chip(separation.statistics[name], percent if name == "fpr_at_95_tpr" else fixed) for name in ROC_STATISTICS
        )
        decisions = (share_chip(missed_share(refused[forget])), share_chip(refused[retain]))
        return tuple((chip,) for chip in (auroc, difference_chip(separation.ahead), *decisions, *more))

    return DetectorTable(pair_title(forget, retain), heads, grouped(analysis, analysis.indices, cells))


def separation_table(analysis: Analysis, trial: ModelTrial) -> DetectorTable:
    """AUROC of every detector on every pair."""
    pairs = list(dict.fromkeys((one.forget, one.retain) for one in trial.separations))
    by_pair = [pair_of(trial, *pair) for pair in pairs]
    heads = tuple((f"{readable(forget)} / {readable(retain)}", "", "") for forget, retain in pairs)

    def cells(detector: DetectorSummary) -> Cells:
        separations = [by_detector[detector.name] for by_detector in by_pair]
        return tuple((value_chip(one.statistics["auroc"], tone=significance(one.ahead)),) for one in separations)

    return DetectorTable(ROLES[trial.role], heads, grouped(analysis, analysis.indices, cells))


def decision_table(analysis: Analysis, trial: ModelTrial, rate: float, placement: Placement) -> DetectorTable:
    """What every detector's threshold decides wrongly of every set."""
    refusals = refusals_of(trial, rate, placement)
    title = f"{ROLES[trial.role]}, at {stated(rate)}, {PLACEMENT_WORDS[placement]}"
    heads = tuple(("missed of " if s.kind == "forget" else "refused of ") + readable(s.name) for s in analysis.sets)

    def cells(detector: DetectorSummary) -> Cells:
        of = refusals[detector.name]
        return tuple(
            (share_chip(wrong_share(of.refused[s.name], s.kind), refusal_significance(of.more[s.name], s.kind)),)
            for s in analysis.sets
        )

    return DetectorTable(title, tuple((head, *ARROWS["lower"]) for head in heads), grouped(analysis, analysis.indices, cells))


def perturbation_table(analysis: Analysis, detectors: Sequence[DetectorSummary]) -> DetectorTable:
    """False refusals above, misses below, under every perturbation."""
    results = {(one.disturbance, one.index): one for one in analysis.disturbed}
    names = [name for name in analysis.disturbances if any(name == perturbation for perturbation, _ in results)]

    def cells(detector: DetectorSummary) -> Cells:
        return tuple(_both_errors(results[name, detector.name]) for name in names)

    return DetectorTable("", tuple((name, "", "") for name in names), grouped(analysis, detectors, cells))


def cost_table(analysis: Analysis, detectors: Sequence[DetectorSummary]) -> DetectorTable:
    """What each detector costs a request; bars are on one scale for all detectors of the analysis."""
    by_name = {cost.index: cost for cost in analysis.costs}
    longest = max((cost.share for cost in analysis.costs), default=0.0)
    heads = ("microseconds", "of generation", "tokens read", "held a moment", "kept with the gate")

    def cells(detector: DetectorSummary) -> Cells:
        return _cost_cells(by_name[detector.name], longest)

    return DetectorTable("", tuple((head, "", "") for head in heads), grouped(analysis, detectors, cells))


def grouped(
    analysis: Analysis, detectors: Sequence[DetectorSummary], cells: Callable[[DetectorSummary], Cells]
) -> tuple[RowGroup, ...]:
    """The detectors by what they read, in their order. A label is `token score, aggregation`."""
    groups = []
    for title, alike in groupby(detectors, key=lambda detector: detector.label.split(", ", 1)[0]):
        rows = tuple(
            DetectorRow(of.label.split(", ", 1)[-1], _note(analysis, of), of.name == analysis.reference, cells(of))
            for of in alike
        )
        groups.append(RowGroup(title, rows))
    return tuple(groups)


def pair_title(forget: str, retain: str) -> str:
    return f"{readable(forget)} against {readable(retain)}"


def value_chip(estimate: Estimate, write: Callable[[float], str] = fixed, tone: Significance = "") -> Chip:
    """A value with its interval."""
    return Chip(write(estimate.value), _interval(estimate, write), tone)


def share_chip(estimate: Estimate, tone: Significance = "") -> Chip:
    """A share of requests decided wrongly, the darker the more there are."""
    shade = 0.0 if math.isnan(estimate.value) else min(1.0, estimate.value)
    return Chip(percent(estimate.value), _interval(estimate, percent), tone, round(shade, 3))


def difference_chip(estimate: Estimate) -> Chip:
    """A signed difference, marked where its interval leaves 0 out."""
    return Chip(signed(estimate.value), _interval(estimate, _four), significance(estimate))


def signed(value: float) -> str:
    """Four decimals, with a plus above 0."""
    text = _four(value)
    return f"+{text}" if value > 0 and float(text) else text


def wrong_share(refused: Estimate, kind: Kind) -> Estimate:
    """What is decided wrongly of a set: missed of a forget set, refused of a retained one."""
    return missed_share(refused) if kind == "forget" else refused


def missed_share(refused: Estimate) -> Estimate:
    """The share that is let through of what should be refused."""
    return Estimate(1 - refused.value, 1 - refused.high, 1 - refused.low)


def size_text(count: int) -> str:
    """Bytes as `16 kB`; a dash for none."""
    if count == 0:
        return NOT_SCORED
    return f"{count} B" if count < 1000 else f"{count / 1000:.3g} kB" if count < 1e6 else f"{count / 1e6:.3g} MB"


def _four(value: float) -> str:
    return fixed(value, 4)


def _interval(estimate: Estimate, write: Callable[[float], str]) -> str:
    return "" if math.isnan(estimate.low) else f"{write(estimate.low)} to {write(estimate.high)}"


def _both_errors(result: PerturbationResult) -> tuple[Chip, Chip]:
    wrong, through = share_chip(result.false_refusals), share_chip(result.missed)
    return Chip(wrong.text, "", "retain", wrong.shade), Chip(through.text, "", "forget", through.shade)


def _cost_cells(cost: DetectorCost, longest: float) -> Cells:
    bar = Chip(percent(cost.share), tone="bar", shade=round(cost.share / longest, 3) if longest > 0 else 0.0)
    texts = (f"{cost.positions:.3g}", size_text(cost.working_bytes), size_text(cost.kept_bytes))
    return (Chip(f"{cost.microseconds:,.0f}"),), (bar,), *((Chip(text),) for text in texts)


def _note(analysis: Analysis, detector: DetectorSummary) -> str:
    if detector.name == analysis.reference:
        return "the gate’s score" if analysis.gate_score is not None else "the others are compared with it"
    return "fitted to retained requests" if detector.fitted else ""
