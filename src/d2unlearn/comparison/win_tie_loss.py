"""The proposed method against every other entry in every metric, at a glance: won, tied or lost, and by how much."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from d2unlearn.comparison.outcomes import COMEBACK, GUARDED_ROUGE, OTHER_WORDS, REFUSAL_RATE, STRENGTH, MetricOutcome, Result
from d2unlearn.comparison.records import PROPOSED_METHOD
from d2unlearn.comparison.table import SplitTable
from d2unlearn.report.figures import AXIS, FORGET_COLOUR, INK, RETAIN, STYLE, Drawing, svg_of
from d2unlearn.report.notation import readable

GROUPS = {
    STRENGTH: "in the weights",
    OTHER_WORDS: "reworded",
    GUARDED_ROUGE: "told",
    REFUSAL_RATE: "gate refuses",
    COMEBACK: "relearned",
}
"""What the columns are of, by metric; within a group a column a set of questions."""
CELL = 0.36
"""Width and height of a cell, inches."""
MARGIN, HEAD, FOOT = 2.1, 1.55, 0.85
"""Inches for the names on the left, the sets on top, the legend below."""
LEGEND = 16
"""Cells that it is wide."""
SMALLEST, LARGEST = 10.0, 150.0
"""Area in square points of a mark for no difference, and for a difference of 1."""
VERBS: dict[Result, str] = {"win": "wins", "tie": "ties", "loss": "loses"}
LOOKS: dict[Result, tuple[str, str, str]] = {
    "win": ("o", RETAIN, RETAIN),
    "tie": ("o", "none", AXIS),
    "loss": ("D", FORGET_COLOUR, FORGET_COLOUR),
}
"""Shape, filling and outline."""


def win_tie_loss(table: SplitTable, key: str = "win-tie-loss") -> Drawing | None:
    """A row an entry, a column a metric, a mark where they were compared. None where nobody was."""
    if not table.outcomes:
        return None
    columns = columns_of(table.outcomes)
    compared = {outcome.contestant for outcome in table.outcomes}
    names = [row.contestant for row in table.rows if row.contestant in compared]
    width, height = MARGIN + CELL * max(len(columns) + 2, LEGEND), HEAD + CELL * len(names) + FOOT
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        axes = figure.add_axes((MARGIN / width, FOOT / height, CELL * len(columns) / width, CELL * len(names) / height))
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(names) - 0.5, -0.5)
        for outcome in table.outcomes:
            x, y = columns.index(outcome.respect), names.index(outcome.contestant)
            _mark(axes, x, y, outcome.result, area_of(outcome.difference))
        _frame(axes, columns, names)
        _legend(axes, len(names) + 0.95)
        return Drawing(svg_of(figure, key), counts_text(table))


def counts_text(table: SplitTable) -> str:
    """How often the proposed method wins, ties and loses on a split."""
    results = [outcome.result for outcome in table.outcomes]
    counts = ", ".join(f"{verb} {results.count(result)}" for result, verb in VERBS.items())
    return f"{PROPOSED_METHOD} against everybody else on {table.split}: {counts}."


def columns_of(outcomes: Sequence[MetricOutcome]) -> list[str]:
    """The metrics, those of one group side by side, what is to be forgotten first."""
    of_forget = {outcome.respect: outcome.theme.startswith("forget") for outcome in outcomes}
    groups = list(GROUPS)
    return sorted(of_forget, key=lambda metric: (groups.index(_group(metric)), not of_forget[metric]))


def area_of(difference: float) -> float:
    """Of a mark, square points."""
    return SMALLEST + (LARGEST - SMALLEST) * min(abs(difference), 1.0)


def _group(metric: str) -> str:
    begins = metric.partition(".")[0]
    return begins if begins in (COMEBACK, OTHER_WORDS) else metric.rpartition(".")[2]


def _mark(axes: Axes, x: float, y: float, result: Result, area: float) -> None:
    shape, filling, outline = LOOKS[result]
    size = area * (0.7 if shape == "D" else 1.0)
    look: dict[str, Any] = {"marker": shape, "facecolor": filling, "edgecolor": outline, "linewidth": 1.0}
    axes.scatter([x], [y], s=size, clip_on=False, zorder=3, **look)


def _legend(axes: Axes, y: float) -> None:
    for index, (result, verb) in enumerate(VERBS.items()):
        _mark(axes, 3.4 * index, y, result, area_of(0.35))
        axes.text(3.4 * index + 0.45, y, f"{PROPOSED_METHOD} {verb}", va="center", fontsize=10.5, color=INK)
    axes.text(3.4 * len(VERBS), y, "large: a large difference", va="center", fontsize=10.5, color=INK)


def _frame(axes: Axes, columns: Sequence[str], names: Sequence[str]) -> None:
    """Names, sets, groups and the legend; faint lines that lead the eye."""
    axes.set_yticks(range(len(names)), [readable(name) for name in names])
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for y in range(len(names)):
        axes.axhline(y, color=AXIS, linewidth=0.5, alpha=0.25, zorder=1)
    for x, metric in enumerate(columns):
        relearned = _group(metric) == COMEBACK
        label = f"{metric.rpartition('.')[2]} steps" if relearned else readable(metric.partition(".")[0])
        axes.text(x - 0.15, -0.75, label, rotation=45, ha="left", va="bottom", fontsize=10.5, color=INK)
    groups = [_group(metric) for metric in columns]
    for group in dict.fromkeys(groups):
        first, last = groups.index(group), len(groups) - 1 - groups[::-1].index(group)
        if first:
            axes.axvline(first - 0.5, color=AXIS, linewidth=0.8, alpha=0.6, zorder=1)
        axes.text((first + last) / 2, len(names) - 0.35, GROUPS[group], ha="center", va="top", fontsize=10.5, color=INK)
