"""The trade-off of forgetting against keeping as a figure: every entry a point, the retain model marked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.optimize import isotonic_regression

from d2unlearn.comparison.outcomes import RELEARNED
from d2unlearn.comparison.records import ORIGINAL, PROPOSED_METHOD, RETAIN_MODEL
from d2unlearn.comparison.table import EntryRow, SeedMean, SplitTable
from d2unlearn.report.figures import AXIS, FORGET_COLOUR, INK, RETAIN, STYLE, Drawing, svg_of
from d2unlearn.report.notation import readable

_KEPT = "retain.extraction_strength"
_LEFT = (
    (("forget.extraction_strength",), "left of the forgotten answers: extraction strength at rest"),
    (RELEARNED, "come back: answer probability after relearning"),
)
"""What stands on the horizontal axis of either panel: the one that most entries have."""
_GAP = 0.055
"""Between two labels, as a share of the height."""
_Mark = tuple[str, str, float]
"""Shape, colour and area in square points."""
OWN_MARKS: dict[str, _Mark] = {
    RETAIN_MODEL: ("*", RETAIN, 170.0),
    ORIGINAL: ("s", AXIS, 42.0),
    PROPOSED_METHOD: ("D", FORGET_COLOUR, 52.0),
}
_SHAPES = ("o", "^", "v", "P")
_COLOURS = ("#4c78a8", "#c98a14", "#4c9a43", "#a868a0", "#9d755d", "#2f9c95", "#7a7fd0")
"""Of everybody else, one after another: readable on light and on dark."""


@dataclass(frozen=True)
class Point:
    """An entry in one panel, with half intervals over seeds (0 where there is one seed)."""

    name: str
    x: float
    y: float
    dx: float
    dy: float


def tradeoff(table: SplitTable, key: str = "tradeoff", everybody: Sequence[str] = ()) -> Drawing | None:
    """Two panels, what is left at rest and what comes back, against what was kept. None where nothing is evaluated.

    everybody: the entries of all splits, so that each looks the same in all figures; the table's own unless given.
    """
    panels = [(label, max((points_of(table.rows, metric) for metric in left), key=len)) for left, label in _LEFT]
    panels = [(label, points) for label, points in panels if points]
    if not panels:
        return None
    marks = point_marks(everybody or [row.contestant for row in table.rows])
    with rc_context(STYLE):
        figure = Figure(figsize=(8.4, 4.6 * len(panels)))
        for number, (label, points) in enumerate(panels):
            height = 1 / len(panels)
            bottom = 1 - (number + 1) * height
            _panel(figure.add_axes((0.085, bottom + 0.15 * height, 0.62, 0.78 * height)), label, points, marks)
        described = "; ".join(f"{point.name}: left {point.x:.3f}, kept {point.y:.3f}" for point in panels[0][1])
        return Drawing(svg_of(figure, key), f"Forgetting against keeping on {table.split}. {described}.")


def points_of(rows: Sequence[EntryRow], left: str) -> list[Point]:
    """The entries that have both numbers."""
    points = []
    for row in rows:
        x, y = row.cells.get(left), row.cells.get(_KEPT)
        if x is not None and y is not None and math.isfinite(x.value) and math.isfinite(y.value):
            points.append(Point(row.contestant, x.value, y.value, _half(x), _half(y)))
    return points


def point_marks(names: Sequence[str]) -> dict[str, _Mark]:
    """A shape and a colour for each, in both panels: no two alike among the first 28 without a mark of their own."""
    others = [name for name in names if name not in OWN_MARKS]
    chosen: dict[str, _Mark] = {
        name: (_SHAPES[index // len(_COLOURS) % len(_SHAPES)], _COLOURS[index % len(_COLOURS)], 44.0)
        for index, name in enumerate(others)
    }
    return chosen | {name: OWN_MARKS[name] for name in names if name in OWN_MARKS}


def label_heights(wanted: Sequence[float], gap: float) -> list[float]:
    """Heights near those wanted, in the same order from below, at least `gap` apart, from 0 to 1 while there is room.

    Labels that would run into each other are spread evenly around their common middle.
    """
    order, steps = np.argsort(wanted, kind="stable"), gap * np.arange(len(wanted))
    lowest = isotonic_regression(np.take(wanted, order) - steps).x  # as near to those wanted as a rising sequence can be
    heights = np.empty(len(wanted))
    heights[order] = np.clip(lowest, 0.0, max(0.0, 1.0 - steps[-1])) + steps
    return [float(height) for height in heights]


def _panel(axes: Axes, label: str, points: Sequence[Point], marks: Mapping[str, _Mark]) -> None:
    low = min(0.0, *(point.y - point.dy for point in points))
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(low - 0.03, 1.05)
    for point in points:
        shape, colour, size = marks[point.name]
        axes.errorbar(point.x, point.y, point.dy, point.dx, fmt="none", ecolor=colour, elinewidth=1, alpha=0.7, zorder=2)
        axes.scatter([point.x], [point.y], s=size, marker=shape, color=colour, zorder=3, clip_on=False, linewidth=0)
    _labels(axes, points, marks)
    axes.set_xlabel(label)
    axes.set_ylabel("kept: extraction strength, retained")
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.grid(linewidth=0.6, alpha=0.45)
    axes.set_axisbelow(True)


def _labels(axes: Axes, points: Sequence[Point], marks: Mapping[str, _Mark]) -> None:
    """Names in a column on the right, each with its mark and tied to its point."""
    low, high = axes.get_ylim()
    heights = label_heights([(point.y - low) / (high - low) for point in points], _GAP)
    for point, height in zip(points, heights, strict=True):
        shape, colour, size = marks[point.name]
        axes.scatter([1.1], [height], s=min(size, 90.0), marker=shape, color=colour, transform=axes.transAxes, clip_on=False)
        axes.annotate(
            "",
            xy=(point.x, point.y),
            xytext=(1.09, height),
            textcoords="axes fraction",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 3, "alpha": 0.55},
        )
        axes.text(1.125, height, readable(point.name), transform=axes.transAxes, fontsize=10.5, va="center", color=INK)


def _half(cell: SeedMean) -> float:
    return 0.0 if math.isnan(cell.low) else (cell.high - cell.low) / 2
