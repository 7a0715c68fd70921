"""The tables of an analysis: every index with its intervals, what each threshold refuses, disturbances, costs. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from d2unlearn.analysis.records import Analysis, Cost, Disturbed, Estimate, ModelTrial, Placement, TriedIndex
from d2unlearn.analysis.significance import ROLES, Standing, pair_of, refusals_of, standing
from d2unlearn.report.notation import NOT_SCORED, fixed, percent, readable, stated
from d2unlearn.report.tables import ARROWS

STATISTICS = {
    "auroc": ("AUROC", "higher"),
    "aupr": ("AUPR", "higher"),
    "fpr_at_95_tpr": ("FPR at 95% TPR", "lower"),
    "overlap": ("Overlap", "lower"),
    "ks_distance": ("KS distance", "higher"),
}
PLACEMENTS: Mapping[Placement, str] = {"conformal": "from calibration alone", "raised": "raised into the gap to forget"}
MARKS: Mapping[Standing, str] = {"ahead": "better", "behind": "worse", "level": ""}
"""CSS classes."""


@dataclass(frozen=True)
class Chip:
    """One number; `shade` (0 to 1) is how strongly it is tinted, `tone` its CSS class."""

    text: str
    interval: str = ""
    tone: str = ""
    shade: float = 0.0


@dataclass(frozen=True)
class Line:
    """An index's row: its label within its group, and one cell of one or two chips a column."""

    label: str
    note: str
    own: bool
    cells: tuple[tuple[Chip, ...], ...]


@dataclass(frozen=True)
class Group:
    """The rows of one reading."""

    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Table:
    """heads: (label, arrow, what the arrow says), empty arrow for none."""

    title: str
    heads: tuple[tuple[str, str, str], ...]
    groups: tuple[Group, ...]


def every_index(analysis: Analysis, trial: ModelTrial, forget: str, retain: str, rate: float) -> Table:
    """All statistics of one pair, the distance to the reference, and what is decided wrongly at a rate."""
    found, refused = pair_of(trial, forget, retain), refusals_of(trial, rate)
    first, *others = ((label, *ARROWS[better]) for label, better in STATISTICS.values())
    decided = ((f"{what} at {stated(rate)}", *ARROWS["lower"]) for what in ("missed", "refused wrongly"))
    heads = (first, ("less the reference’s", "", ""), *decided, *others)

    def cells(index: TriedIndex) -> tuple[tuple[Chip, ...], ...]:
        each, share = found[index.name], refused[index.name].refused
        area, *more = (number(each.statistics[name], share=name == "fpr_at_95_tpr") for name in STATISTICS)
        decisions = (share_of(missed(share[forget])), share_of(share[retain]))
        return tuple((chip,) for chip in (area, difference(each.ahead), *decisions, *more))

    title = f"{readable(forget)} against {readable(retain)}"
    return Table(title, heads, grouped(analysis, analysis.indices, cells))


def separations(analysis: Analysis, trial: ModelTrial, title: str) -> Table:
    """AUROC of every index on every pair."""
    pairs = list(dict.fromkeys((each.forget, each.retain) for each in trial.separations))
    by_pair = [pair_of(trial, *pair) for pair in pairs]
    heads = tuple((f"{readable(forget)} / {readable(retain)}", "", "") for forget, retain in pairs)

    def cells(index: TriedIndex) -> tuple[tuple[Chip, ...], ...]:
        each = [found[index.name] for found in by_pair]
        return tuple((_marked(number(e.statistics["auroc"]), standing(e.ahead)),) for e in each)

    return Table(title, heads, grouped(analysis, analysis.indices, cells))


def decisions(analysis: Analysis, trial: ModelTrial, rate: float, placement: Placement) -> Table:
    """What every index's threshold decides wrongly of every set."""
    refused = refusals_of(trial, rate, placement)
    title = f"{ROLES[trial.role]}, at {stated(rate)}, {PLACEMENTS[placement]}"
    heads = tuple(("missed of " if s.kind == "forget" else "refused of ") + readable(s.name) for s in analysis.sets)

    def cells(index: TriedIndex) -> tuple[tuple[Chip, ...], ...]:
        each = refused[index.name]
        chips = []
        for tried in analysis.sets:
            stands = standing(each.more[tried.name])
            if tried.kind == "forget":
                chips.append(_marked(share_of(missed(each.refused[tried.name])), stands))
            else:
                good: Mapping[Standing, Standing] = {"ahead": "behind", "behind": "ahead", "level": "level"}
                chips.append(_marked(share_of(each.refused[tried.name]), good[stands]))
        return tuple((chip,) for chip in chips)

    return Table(title, tuple((head, *ARROWS["lower"]) for head in heads), grouped(analysis, analysis.indices, cells))


def disturbances(analysis: Analysis, indices: Sequence[TriedIndex]) -> Table:
    """False refusals above, misses below, under every disturbance."""
    found = {(each.disturbance, each.index): each for each in analysis.disturbed}
    names = [name for name in analysis.disturbances if any(each.disturbance == name for each in analysis.disturbed)]
    cells = lambda index: tuple(_both(found[name, index.name]) for name in names)  # noqa: E731
    return Table("", tuple((name, "", "") for name in names), grouped(analysis, indices, cells))


def costs(analysis: Analysis, indices: Sequence[TriedIndex]) -> Table:
    """What each index costs a request; bars are on one scale for all indices of the analysis."""
    by_name = {each.index: each for each in analysis.costs}
    longest = max((each.share for each in analysis.costs), default=0.0)
    heads = ("microseconds", "of generation", "tokens read", "held a moment", "kept with the gate")
    cells = lambda index: _cost(by_name[index.name], longest)  # noqa: E731
    return Table("", tuple((head, "", "") for head in heads), grouped(analysis, indices, cells))


def grouped(
    analysis: Analysis, indices: Sequence[TriedIndex], cells: Callable[[TriedIndex], tuple[tuple[Chip, ...], ...]]
) -> tuple[Group, ...]:
    """The indices by what they read, in their order. A label is `reading, pool`."""
    groups = []
    for title, each in groupby(indices, key=lambda index: index.label.split(", ", 1)[0]):
        lines = tuple(
            Line(index.label.split(", ", 1)[-1], _note(analysis, index), index.name == analysis.reference, cells(index))
            for index in each
        )
        groups.append(Group(title, lines))
    return tuple(groups)


def number(estimate: Estimate, *, share: bool = False) -> Chip:
    """A value with its interval."""
    write = percent if share else fixed
    return Chip(write(estimate.value), _interval(estimate, write))


def share_of(estimate: Estimate) -> Chip:
    """A share of requests decided wrongly, the darker the more there are."""
    shade = 0.0 if math.isnan(estimate.value) else min(1.0, estimate.value)
    return Chip(percent(estimate.value), _interval(estimate, percent), shade=round(shade, 3))


def difference(estimate: Estimate) -> Chip:
    """A signed difference, marked where its interval leaves 0 out."""
    sign = "+" if estimate.value > 0 and float(fixed(estimate.value, 4).replace("−", "-")) else ""
    chip = Chip(NOT_SCORED if math.isnan(estimate.value) else f"{sign}{fixed(estimate.value, 4)}", _interval(estimate, _four))
    return _marked(chip, standing(estimate))


def missed(refused: Estimate) -> Estimate:
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


def _marked(chip: Chip, stands: Standing) -> Chip:
    return Chip(chip.text, chip.interval, MARKS[stands], chip.shade)


def _both(each: Disturbed) -> tuple[Chip, Chip]:
    wrong, through = share_of(each.false_refusals), share_of(each.missed)
    return Chip(wrong.text, "", "retain", wrong.shade), Chip(through.text, "", "forget", through.shade)


def _cost(cost: Cost, longest: float) -> tuple[tuple[Chip, ...], ...]:
    bar = Chip(percent(cost.share), tone="bar", shade=round(cost.share / longest, 3) if longest > 0 else 0.0)
    texts = (f"{cost.positions:.3g}", size_text(cost.working_bytes), size_text(cost.kept_bytes))
    return (Chip(f"{cost.microseconds:,.0f}"),), (bar,), *((Chip(text),) for text in texts)


def _note(analysis: Analysis, index: TriedIndex) -> str:
    if index.name == analysis.reference:
        return "the gate’s score" if analysis.gate_score is not None else "the others are compared with it"
    return "fitted to retained requests" if index.fitted else ""
