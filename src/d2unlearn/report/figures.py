"""The report's figures as inline SVG. Colours are CSS variables of the page, so that they follow light and dark mode.

No text of a user's is drawn here: names of sets stand in the page, where they wrap and are escaped.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from d2unlearn.schema import Evaluation, GateSummary, Kind
from d2unlearn.stats import Floats

PAGE_COLOURS = {
    "#f00001": "var(--forget)",
    "#0000f1": "var(--retain)",
    "#808081": "var(--axis)",
    "#010101": "var(--ink)",
    **{f"#{number}0a00{number}": f"var(--series{number})" for number in range(1, 6)},
}
"""What is drawn with, and what the page makes of it."""
FORGET_COLOUR, RETAIN, AXIS, INK, *SERIES = PAGE_COLOURS
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 12.5,
    "text.color": INK,
    "axes.edgecolor": AXIS,
    "axes.labelcolor": INK,
    "xtick.color": AXIS,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": AXIS,
}
STROKES = 30
"""Scores on the wrong side of the threshold are drawn one by one up to this many; beyond, the histogram shows them."""


@dataclass(frozen=True)
class Drawing:
    """A figure, and what it shows in words."""

    svg: str
    description: str


@dataclass(frozen=True)
class Panel:
    """A histogram of both kinds: the drawing, and what it shows in words (for those who cannot see it)."""

    title: str
    svg: str
    description: str


@dataclass(frozen=True)
class Ridge:
    """The gate scores of one set: a drawing without text, how many lie above the threshold, and of how many."""

    name: str
    kind: str
    svg: str
    above: int
    n: int
    description: str


@dataclass(frozen=True)
class Ridges:
    """Rows of one common scale. `ticks` and `threshold_at` are (text, percent of the width)."""

    rows: tuple[Ridge, ...]
    ticks: tuple[tuple[str, float], ...]
    threshold: tuple[str, float] | None


def _numbers(values: Sequence[float | None]) -> Floats:
    """The numbers among the values, as a float64 vector."""
    array = np.asarray([np.nan if v is None else v for v in values], dtype=np.float64)
    return array[np.isfinite(array)]


def question_energies(evaluation: Evaluation, kind: Kind) -> Floats:
    """The prompt energies of every example of that kind."""
    return _numbers([e.prompt_energy for s in evaluation.sets if s.kind == kind for e in s.examples])


def energy_panels(before: Evaluation, after: Evaluation) -> tuple[Panel, ...]:
    """Histograms of the prompt energy, forget and retained, before and after, on the same axes.

    Heights are shares of the questions of a kind. Empty when no energy was scored.
    """
    sides = [
        (title, question_energies(e, "forget"), question_energies(e, "retain"))
        for title, e in (("Before", before), ("After", after))
    ]
    everything = np.concatenate([values for _, *kinds in sides for values in kinds])
    if not len(everything):
        return ()
    edges = bin_edges(everything)
    top = max(float(shares(values, edges).max()) for _, *kinds in sides for values in kinds)
    with rc_context(STYLE):
        return tuple(_energy_panel(title, forget, retain, edges, top) for title, forget, retain in sides)


def gate_ridges(after: Evaluation, gate: GateSummary | None) -> Ridges | None:
    """The gate's score of every set evaluated, then of the prompts that the gate was calibrated with.

    None when there is no score. The threshold is the gate's, or the evaluation's own.
    """
    rows = [(s.name, s.kind, _numbers([e.gate_score for e in s.examples])) for s in after.sets]
    rows = [row for row in rows if len(row[2])]
    if gate is not None:
        rows += [("calibration, retained", "retain", _numbers(gate.retain_scores))] if gate.retain_scores else []
        rows += [("calibration, forget", "forget", _numbers(gate.forget_scores))] if gate.forget_scores else []
    if not rows:
        return None
    threshold = gate.threshold if gate is not None else after.threshold
    edges = bin_edges(np.concatenate([values for *_, values in rows] + [_numbers([threshold])]), bins=90)
    with rc_context(STYLE):
        drawn = tuple(_ridge(*row, edges, threshold, f"ridge{i}") for i, row in enumerate(rows))
    return Ridges(drawn, _ticks(edges), _placed(threshold, edges))


def bin_edges(values: Floats, bins: int = 48) -> Floats:
    """Edges of equal bins over the whole range of the values, with a margin of a bin on either side."""
    low, high = float(values.min()), float(values.max())
    width = (high - low) / (bins - 2) or 1.0
    return np.linspace(low - width, high + width, bins + 1)


def shares(values: Floats, edges: Floats) -> Floats:
    """The share of the values in each bin; zeros when there are none."""
    counts = np.histogram(values, edges)[0].astype(np.float64)
    return counts / max(len(values), 1)


def _energy_panel(title: str, forget: Floats, retain: Floats, edges: Floats, top: float) -> Panel:
    figure = Figure(figsize=(5.2, 2.9))
    axes = figure.add_axes((0.105, 0.175, 0.875, 0.8))
    for values, colour in ((retain, RETAIN), (forget, FORGET_COLOUR)):
        stairs(axes, shares(values, edges), edges, colour)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(0, top * 1.06)
    axes.set_xlabel("energy of the question (nats)")
    plain_axes(axes)
    described = "; ".join(f"{kind}: {spread_text(values)}" for kind, values in (("forget", forget), ("retained", retain)))
    return Panel(title, svg_of(figure, title.lower()), f"{title}: energy of the question in nats. {described}.")


def stairs(axes: Axes, heights: Floats, edges: Floats, colour: str) -> None:
    """A filled histogram with an outline; nothing is drawn where it is empty."""
    occupied = np.where(heights > 0, heights, np.nan)
    axes.stairs(occupied, edges, fill=True, color=colour, alpha=0.34, linewidth=0, clip_on=False)
    axes.stairs(occupied, edges, color=colour, linewidth=1.5, clip_on=False)


def spread_text(values: Floats) -> str:
    """How many, the median and where 90% lie, in words."""
    if not len(values):
        return "not scored"
    middle, low, high = np.quantile(values, [0.5, 0.05, 0.95])
    return f"n = {len(values)}, median {middle:.1f}, 90% between {low:.1f} and {high:.1f}".replace("-", "−")


def plain_axes(axes: Axes) -> None:
    """Only what is read: the value axis, light horizontal lines, no box."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.xaxis.set_major_locator(MaxNLocator(7))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", linewidth=0.6, alpha=0.45)
    axes.set_axisbelow(True)


def _ridge(name: str, kind: str, values: Floats, edges: Floats, threshold: float | None, key: str) -> Ridge:
    """One row: the histogram in its own height, and a stroke for each of few scores on the wrong side of the threshold."""
    colour = FORGET_COLOUR if kind == "forget" else RETAIN
    figure = Figure(figsize=(8, 0.6))
    axes = figure.add_axes((0, 0, 1, 1))
    heights = shares(values, edges)
    stairs(axes, heights, edges, colour)
    axes.set(xlim=(edges[0], edges[-1]), ylim=(0, float(heights.max()) * 1.1))
    axes.set_axis_off()
    above = int((values > threshold).sum()) if threshold is not None else 0
    if threshold is not None:
        wrong = values[values <= threshold] if kind == "forget" else values[values > threshold]
        if len(wrong) <= STROKES:
            axes.vlines(wrong, 0, heights.max() * 0.5, color=colour, linewidth=2, clip_on=False)
    svg = svg_of(figure, key).replace("<svg ", '<svg preserveAspectRatio="none" ', 1)
    return Ridge(name, kind, svg, above, len(values), f"{above} of {len(values)} scores above the threshold")


def _ticks(edges: Floats) -> tuple[tuple[str, float], ...]:
    ticks = MaxNLocator(6).tick_values(float(edges[0]), float(edges[-1]))
    placed = (_placed(float(tick), edges) for tick in ticks)
    return tuple(tick for tick in placed if tick is not None and 3 < tick[1] < 97)


def _placed(value: float | None, edges: Floats) -> tuple[str, float] | None:
    """A value as text, and where it lies on the scale in percent of the width."""
    if value is None or not np.isfinite(value):
        return None
    share = (value - edges[0]) / (edges[-1] - edges[0])
    return f"{value:.3g}".replace("-", "−"), round(100 * float(share), 2)


def svg_of(figure: Figure, key: str) -> str:
    """The figure as one SVG element: the page's colours and font, no names of its own, no reference to anything.

    The same figure and key give the same text. `key` keeps the ids of several drawings in one page apart.
    """
    text = io.StringIO()
    with rc_context(STYLE | {"svg.hashsalt": key}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return _inline(text.getvalue(), key)


def _inline(svg: str, key: str) -> str:
    """What a page needs of a stand-alone SVG file."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s(?:xmlns(?::xlink)?|version|width|height)="[^"]*"', "", svg[: svg.index(">")]) + svg[svg.index(">") :]
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{key}-", svg)
    svg = re.sub(r"font-family:[^;\"]*;?", "", svg)
    for drawn, shown in PAGE_COLOURS.items():
        svg = svg.replace(drawn, shown)
    return re.sub(r"\s*\n\s*", " ", svg).strip()
