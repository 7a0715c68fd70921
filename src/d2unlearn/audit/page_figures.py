"""The curves of an audit's page as inline SVG in the page's colours: numbers in, drawings with a description out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from d2unlearn.audit.page_pictures import MARKED, CurvePanel, Line
from d2unlearn.report import figures
from d2unlearn.report.figures import Panel, plain_axes, svg_of
from d2unlearn.report.notation import fixed

_VIOLET, _GREEN = figures.SERIES[:2]
CURVES: Mapping[str, dict[str, Any]] = {
    "artifact": {"color": figures.FORGET_COLOUR, "linestyle": "solid", "linewidth": 2.6, "marker": "o", "markersize": 5},
    "guarded": {"color": figures.RETAIN, "linestyle": "solid", "linewidth": 2.2, "marker": "D", "markersize": 4.5},
    "oracle": {"color": _GREEN, "linestyle": (0, (1.2, 1.6)), "linewidth": 2.4, "marker": "s", "markersize": 4.5},
    "never_seen": {"color": _VIOLET, "linestyle": (0, (1.2, 1.6)), "linewidth": 2.4, "marker": "s", "markersize": 4.5},
    "original": {"color": figures.AXIS, "linestyle": (0, (4, 2.4)), "linewidth": 1.7},
}
"""How the models are told apart; the page's legend has the same in CSS."""
_MOST_TICKS = 8


def curve_figure(panel: CurvePanel, scale: tuple[float, float], key: str) -> Panel:
    """One panel: the worst line with every model and its interval, the others faint and of the artifact alone.

    The numbers run in even steps along the axis, which has a mark for each (for every second where they are many).
    """
    numbers = sorted({x for line in panel.lines for x, _ in line.points})
    places = {x: float(place) for place, x in enumerate(numbers)}
    with rc_context(figures.STYLE):
        figure = Figure(figsize=(4.2, 2.75))
        axes = figure.add_axes((0.125, 0.19, 0.85, 0.77))
        plain_axes(axes)
        for line in sorted(panel.lines, key=lambda line: line.bold):
            for name in reversed(MARKED) if line.bold else ("artifact", "guarded"):
                _draw(axes, line, name, places)
        if panel.chance is not None:
            axes.axhline(panel.chance, color=figures.AXIS, linestyle="dotted", linewidth=1.4, zorder=0)
        _number_axis(axes, numbers)
        if panel.title:
            axes.set_xlabel(panel.along)
        axes.set_ylim(scale)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}".replace("-", "−")))
        title = panel.title or panel.along
        return Panel(title, svg_of(figure, key), f"{title}, by {panel.along}. {_said(panel)}")


def _draw(axes: Axes, line: Line, name: str, places: Mapping[float, float]) -> None:
    """One model's curve along a line; nothing where it was not asked."""
    scored = [(places[x], each.values[name]) for x, each in line.points if name in each.values]
    if not scored:
        return
    across, up = [x for x, _ in scored], [metric.value for _, metric in scored]
    if not line.bold:
        axes.plot(across, up, color=CURVES[name]["color"], linewidth=1.3, alpha=0.42, clip_on=False)
        return
    if name in ("artifact", "guarded"):
        low, high = [metric.low for _, metric in scored], [metric.high for _, metric in scored]
        axes.fill_between(across, low, high, color=CURVES[name]["color"], alpha=0.16, linewidth=0)
    axes.plot(across, up, clip_on=False, **CURVES[name])


def _number_axis(axes: Axes, numbers: Sequence[float]) -> None:
    step = -(-len(numbers) // _MOST_TICKS)
    axes.set_xlim(-0.2, len(numbers) - 0.8)
    axes.xaxis.set_major_locator(FixedLocator([float(place) for place in range(0, len(numbers), step)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda place, _: f"{numbers[round(place)]:g}".replace("-", "−")))


def _said(panel: CurvePanel) -> str:
    """The worst line's numbers in words."""
    worst = next(line for line in panel.lines if line.bold)
    told = [] if panel.chance is None else [f"chance {panel.chance:g}"]
    for name, words in MARKED.items():
        numbers = [f"{x:g}: {fixed(each.values[name].value)}" for x, each in worst.points if name in each.values]
        told += [f"{words} {', '.join(numbers)}"] if numbers else []
    return f"{'; '.join(told)}."
