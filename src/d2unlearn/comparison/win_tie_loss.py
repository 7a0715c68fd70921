"""The proposed method against every other contestant in every respect, at a glance: won, tied or lost, and by how much."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from d2unlearn.comparison.outcomes import ATTACKED, COMEBACK, REFUSED, TOLD, Outcome, Result
from d2unlearn.comparison.records import PROPOSED_METHOD
from d2unlearn.comparison.table import SplitTable
from d2unlearn.report.figures import AXIS, FORGET, INK, RETAIN, STYLE, Drawing, svg_of

GROUPS = {"extraction_strength": "in the weights", TOLD: "told", REFUSED: "gate refuses", COMEBACK: "relearned"}
"""What the columns are of, by metric; within a group a column a set of questions."""
CELL = 0.36
"""Width and height of a cell, inches."""
MARGIN, HEAD, FOOT = 2.1, 1.55, 0.85
"""Inches for the names on the left, the sets on top, the legend below."""
LEGEND = 16
"""Cells that it is wide."""
SMALLEST, LARGEST = 10.0, 150.0
"""Area in square points of a mark for no difference, and for a difference of 1."""
WORDS: dict[Result, str] = {"win": "wins", "tie": "ties", "loss": "loses"}
LOOKS: dict[Result, tuple[str, str, str]] = {
    "win": ("o", RETAIN, RETAIN),
    "tie": ("o", "none", AXIS),
    "loss": ("D", FORGET, FORGET),
}
"""Shape, filling and outline."""


def duels(table: SplitTable, key: str = "duels") -> Drawing | None:
    """A row a contestant, a column a respect, a mark where they were compared. None where nobody was."""
    if not table.outcomes:
        return None
    columns = columns_of(table.outcomes)
    names = [row.contestant for row in table.rows if any(each.contestant == row.contestant for each in table.outcomes)]
    width, height = MARGIN + CELL * max(len(columns) + 2, LEGEND), HEAD + CELL * len(names) + FOOT
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        axes = figure.add_axes((MARGIN / width, FOOT / height, CELL * len(columns) / width, CELL * len(names) / height))
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(names) - 0.5, -0.5)
        for each in table.outcomes:
            _mark(axes, columns.index(each.respect), names.index(each.contestant), each.result, area_of(each.difference))
        _frame(axes, columns, names)
        _legend(axes, len(names) + 0.95)
        results = [each.result for each in table.outcomes]
        counted = ", ".join(f"{words} {results.count(result)}" for result, words in WORDS.items())
        return Drawing(svg_of(figure, key), f"{PROPOSED_METHOD} against everybody else on {table.split}: {counted}.")


def columns_of(outcomes: Sequence[Outcome]) -> list[str]:
    """The respects, those of one group side by side, what is to be forgotten first."""
    themes = {each.respect: each.theme for each in outcomes}
    groups = list(GROUPS)
    return sorted(themes, key=lambda respect: (groups.index(_group(respect)), not themes[respect].startswith("forget")))


def area_of(difference: float) -> float:
    """Of a mark, square points."""
    return SMALLEST + (LARGEST - SMALLEST) * min(abs(difference), 1.0)


def _group(respect: str) -> str:
    return COMEBACK if respect == COMEBACK else respect.rpartition(".")[2]


def _mark(axes: Axes, x: float, y: float, result: Result, area: float) -> None:
    shape, filling, outline = LOOKS[result]
    size = area * (0.7 if shape == "D" else 1.0)
    look: dict[str, Any] = {"marker": shape, "facecolor": filling, "edgecolor": outline, "linewidth": 1.0}
    axes.scatter([x], [y], s=size, clip_on=False, zorder=3, **look)


def _legend(axes: Axes, y: float) -> None:
    for place, (result, words) in enumerate(WORDS.items()):
        _mark(axes, 3.4 * place, y, result, area_of(0.35))
        axes.text(3.4 * place + 0.45, y, f"{PROPOSED_METHOD} {words}", va="center", fontsize=10.5, color=INK)
    axes.text(3.4 * len(WORDS), y, "large: a large difference", va="center", fontsize=10.5, color=INK)


def _frame(axes: Axes, columns: Sequence[str], names: Sequence[str]) -> None:
    """Names, sets, groups and the legend; faint lines that lead the eye."""
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for place in range(len(names)):
        axes.axhline(place, color=AXIS, linewidth=0.5, alpha=0.25, zorder=1)
    for place, respect in enumerate(columns):
        words = f"{ATTACKED[1]} steps" if respect == COMEBACK else respect.partition(".")[0].replace("_", " ")
        axes.text(place - 0.15, -0.75, words, rotation=45, ha="left", va="bottom", fontsize=10.5, color=INK)
    groups = [_group(each) for each in columns]
    for group in dict.fromkeys(groups):
        first, last = groups.index(group), len(groups) - 1 - groups[::-1].index(group)
        if first:
            axes.axvline(first - 0.5, color=AXIS, linewidth=0.8, alpha=0.6, zorder=1)
        axes.text((first + last) / 2, len(names) - 0.35, GROUPS[group], ha="center", va="top", fontsize=10.5, color=INK)
