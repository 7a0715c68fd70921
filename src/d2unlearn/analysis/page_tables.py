"""The tables of an analysis: every detector with its intervals, what each threshold refuses, perturbations, costs. Pure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from d2unlearn.analysis.significance import ROLES, Significance, pair_of, refusal_significance, refusals_of, significance
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
Heads = tuple[tuple[str, str, str], ...]
"""(label, arrow, what the arrow says), empty arrow for none."""


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
    """A table with a row for each detector."""

    title: str
    heads: Heads
    groups: tuple[RowGroup, ...]


def detector_table(analysis: Analysis, trial: ModelTrial, forget: str, retain: str, rate: float) -> DetectorTable:
    """All statistics of one pair, the distance to the base detector, and what is decided wrongly at a rate."""
    first, *others = ((statistic.label, *ARROWS[statistic.better]) for statistic in ROC_STATISTICS.values())
    decided = _heads((f"{what} at {stated(rate)}" for what in ("missed", "refused wrongly")), ARROWS["lower"])
    refusals, cells = refusals_of(trial, rate), {}
    for detector, separation in pair_of(trial, forget, retain).items():
        found = separation.statistics
        auroc, *more = (value_chip(found[name], percent if name == "fpr_at_95_tpr" else fixed) for name in ROC_STATISTICS)
        refused = refusals[detector].refused
        decisions = (share_chip(missed_share(refused[forget])), share_chip(refused[retain]))
        cells[detector] = _one_each((auroc, difference_chip(separation.ahead), *decisions, *more))
    heads = (first, *_heads(["less the reference’s"]), *decided, *others)
    return _table(analysis, pair_title(forget, retain), heads, cells)


def separation_table(analysis: Analysis, trial: ModelTrial) -> DetectorTable:
    """AUROC of every detector on every pair."""
    cells: dict[str, Cells] = defaultdict(tuple)
    for separation in trial.separations:
        cells[separation.index] += _one_each([value_chip(separation.statistics["auroc"], tone=significance(separation.ahead))])
    pairs = dict.fromkeys(f"{readable(separation.forget)} / {readable(separation.retain)}" for separation in trial.separations)
    return _table(analysis, ROLES[trial.role], _heads(pairs), cells)


def decision_table(analysis: Analysis, trial: ModelTrial, rate: float, placement: Placement) -> DetectorTable:
    """What every detector's threshold decides wrongly of every set."""
    cells = {
        detector: _one_each(
            share_chip(wrong_share(refusals.refused[s.name], s.kind), refusal_significance(refusals.more[s.name], s.kind))
            for s in analysis.sets
        )
        for detector, refusals in refusals_of(trial, rate, placement).items()
    }
    heads = (("missed of " if s.kind == "forget" else "refused of ") + readable(s.name) for s in analysis.sets)
    title = f"{ROLES[trial.role]}, at {stated(rate)}, {PLACEMENT_WORDS[placement]}"
    return _table(analysis, title, _heads(heads, ARROWS["lower"]), cells)


def perturbation_table(analysis: Analysis, detectors: Sequence[DetectorSummary]) -> DetectorTable:
    """False refusals above, misses below, under every perturbation."""
    results = {(result.disturbance, result.index): result for result in analysis.disturbed}
    names = [name for name in analysis.disturbances if any(name == perturbation for perturbation, _ in results)]
    cells = {detector.name: tuple(_both_errors(results[name, detector.name]) for name in names) for detector in detectors}
    return _table(analysis, "", _heads(names), cells)


def cost_table(analysis: Analysis, detectors: Sequence[DetectorSummary]) -> DetectorTable:
    """What each detector costs a request; bars are on one scale for all detectors of the analysis."""
    by_name = {cost.index: cost for cost in analysis.costs}
    longest = max((cost.share for cost in analysis.costs), default=0.0)
    heads = _heads(("microseconds", "of generation", "tokens read", "held a moment", "kept with the gate"))
    return _table(analysis, "", heads, {detector.name: _cost_cells(by_name[detector.name], longest) for detector in detectors})


def _heads(labels: Iterable[str], arrow: tuple[str, str] = ("", "")) -> Heads:
    return tuple((label, *arrow) for label in labels)


def _one_each(chips: Iterable[Chip]) -> Cells:
    return tuple((chip,) for chip in chips)


def _table(analysis: Analysis, title: str, heads: Heads, cells: Mapping[str, Cells]) -> DetectorTable:
    """The detectors that have cells, in that order, by what they read. A label is `token score, aggregation`."""
    by_name = {detector.name: detector for detector in analysis.indices}
    groups = []
    for read, alike in groupby((by_name[name] for name in cells), key=lambda detector: detector.label.split(", ", 1)[0]):
        groups.append(RowGroup(read, tuple(_row(analysis, detector, cells[detector.name]) for detector in alike)))
    return DetectorTable(title, heads, tuple(groups))


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
    return _one_each((Chip(f"{cost.microseconds:,.0f}"), bar, *map(Chip, texts)))


def _row(analysis: Analysis, detector: DetectorSummary, cells: Cells) -> DetectorRow:
    own = detector.name == analysis.reference
    base = "the gate’s score" if analysis.gate_score is not None else "the others are compared with it"
    note = base if own else "fitted to retained requests" if detector.fitted else ""
    return DetectorRow(detector.label.split(", ", 1)[-1], note, own, cells)
