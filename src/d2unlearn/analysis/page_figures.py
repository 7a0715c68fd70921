"""The pictures of an analysis as inline SVG in the page's colours: numbers in, drawings with a description out.

No text of a user's is drawn here, and no detector's name: what a line is stands in the page's legend.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from d2unlearn.analysis.records import AnswerEnergies, CurvePoint, Estimate, ModelRole, Spread
from d2unlearn.analysis.roc import Roc
from d2unlearn.report.figures import (
    AXIS,
    FORGET_COLOUR,
    INK,
    RETAIN,
    SERIES,
    STYLE,
    Panel,
    bin_edges,
    plain_axes,
    shares,
    stairs,
    svg_of,
)
from d2unlearn.report.notation import fixed, percent, stated
from d2unlearn.schema import Kind
from d2unlearn.stats import Floats

KIND_COLOURS: Mapping[Kind, str] = {"forget": FORGET_COLOUR, "retain": RETAIN}
DASHED, DOTTED = (0, (4, 2.4)), (0, (1.2, 1.6))
LINES: tuple[dict[str, Any], ...] = tuple(
    {"color": colour, "linestyle": dash, "linewidth": width}
    for colour, dash, width in zip(
        (INK, *SERIES), ("solid", DASHED, DOTTED, "solid", DASHED, DOTTED), (2.4, 1.8, 2.2, 1.6, 1.8, 2.2), strict=True
    )
)
"""How the detectors of one picture are told apart, in their order; the page's legend has the same in CSS."""
WIDE, NARROW = 5.2, 4.0
"""Inches, for two and for three pictures side by side: at the width of a phone the text is still to be read."""


@dataclass(frozen=True)
class DrawnSet:
    """One set's values. `drawn`: filled, as a dashed outline, or as a dotted one."""

    kind: Kind
    drawn: str
    values: Floats


def distributions(title: str, sets: Sequence[DrawnSet], threshold: float, key: str) -> Panel | None:
    """Histograms of one detector, as shares of each set. The outermost bars hold what lies beyond. None without a number."""
    sets = [replace(drawn_set, values=drawn_set.values[np.isfinite(drawn_set.values)]) for drawn_set in sets]
    sets = [drawn_set for drawn_set in sets if len(drawn_set.values)]
    if not sets:
        return None
    edges = _edges(np.concatenate([drawn_set.values for drawn_set in sets]), threshold)
    with rc_context(STYLE):
        figure, axes = _canvas(2.3, width=NARROW, left=0.14, bottom=0.14)
        for drawn_set in sets:
            _outlined(axes, shares(np.clip(drawn_set.values, edges[0], edges[-1]), edges), edges, drawn_set)
        if np.isfinite(threshold):
            axes.axvline(threshold, color=INK, linewidth=1.3, linestyle=DASHED)
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(bottom=0)
        plain_axes(axes)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        return Panel(title, svg_of(figure, key), f"{title}. {_medians(sets)}.")


def roc_panel(title: str, curves: Sequence[Roc], n_retain: int, key: str) -> Panel:
    """ROC curves over the share of false refusals on a log scale; at its left end, none is refused wrongly."""
    floor = 0.5 / n_retain
    starts = [float(curve.tpr[0][curve.fpr[0] <= 0].max(initial=0.0)) for curve in curves]
    bottom = 0.05 * np.floor(20 * min([0.95, *starts]))
    with rc_context(STYLE):
        figure, axes = _canvas(3.1, left=0.125, bottom=0.19)
        for line, curve, start in reversed(list(zip(LINES, curves, starts, strict=False))):
            refused, caught = curve.fpr[0, ::-1], curve.tpr[0, ::-1]
            along, up = [floor, *refused[refused > 0]], [start, *caught[refused > 0]]
            axes.plot(along, up, drawstyle="steps-post", clip_on=False, **line)
        ticks = [floor, *(tick for tick in (0.01, 0.05, 0.2, 1.0) if tick > 1.6 * floor)]
        _shares_over_log(axes, ticks, lambda x: "none" if x <= floor else stated(x))
        axes.set_xlim(floor, 1)
        axes.set_ylim(bottom, 1)
        axes.set_xlabel("retained requests refused")
        caught = ", ".join(percent(start) for start in starts)
        return Panel(title, svg_of(figure, key), f"{title}. Caught with no false refusal: {caught}.")


Spreads = Mapping[tuple[Kind, str], Sequence[Spread]]
"""Energies of a model's sets from the embeddings on, layer by layer: by kind and how they are drawn."""


def layers_panel(title: str, spreads: Spreads, limits: tuple[float, float], key: str) -> Panel:
    """Energies after each layer: medians, and where 80% lie for what is drawn filled. The embeddings are left out.

    limits: of the energies drawn.
    """
    with rc_context(STYLE):
        figure, axes = _canvas(2.5, width=NARROW, left=0.125, bottom=0.22)
        draw_layers(axes, spreads)
        axes.set_ylim(limits)
        last = "; ".join(f"{kind}, {drawn}: {fixed(layers[-1].middle, 1)}" for (kind, drawn), layers in spreads.items())
        return Panel(title, svg_of(figure, key), f"{title}. Median energy after the last layer, nats: {last}.")


def draw_layers(axes: Axes, spreads: Spreads) -> None:
    """One model's energies after each layer."""
    for (kind, drawn), (_embeddings, *layers) in spreads.items():
        places, colour = np.arange(1, len(layers) + 1), KIND_COLOURS[kind]
        if drawn == "filled":
            axes.fill_between(places, [s.low for s in layers], [s.high for s in layers], color=colour, alpha=0.2, linewidth=0)
        dash, width = ("solid", 2.2) if drawn == "filled" else (DASHED, 1.6)
        axes.plot(places, [s.middle for s in layers], color=colour, linestyle=dash, linewidth=width)
    plain_axes(axes)
    _layer_axis(axes, max(len(layers) for layers in spreads.values()) - 1)
    _signed_axis(axes)


ROLE_LINES: Mapping[ModelRole, dict[str, Any]] = {
    "original": {"color": AXIS, "linestyle": DASHED, "linewidth": 1.7},
    "model": {"color": INK, "linestyle": "solid", "linewidth": 2.4},
    "oracle": {"color": SERIES[0], "linestyle": DOTTED, "linewidth": 2.2},
}
"""How the models are told apart where one picture holds all of them."""


def separation_panel(title: str, auroc: Mapping[ModelRole, Sequence[Estimate]], key: str) -> Panel:
    """AUROC at the embeddings (0) and after each layer, with intervals."""
    with rc_context(STYLE):
        figure, axes = _canvas(2.9, bottom=0.19)
        draw_separation(axes, auroc)
        last = "; ".join(f"{role}: {fixed(layers[-1].value)}" for role, layers in auroc.items())
        return Panel(title, svg_of(figure, key), f"{title}. After the last layer {last}.")


def draw_separation(axes: Axes, auroc: Mapping[ModelRole, Sequence[Estimate]]) -> None:
    """AUROC from the embeddings on, one line a model."""
    axes.axhline(0.5, color=AXIS, linewidth=1)
    for role, layers in auroc.items():
        places, line = np.arange(len(layers)), ROLE_LINES[role]
        low, high = [estimate.low for estimate in layers], [estimate.high for estimate in layers]
        axes.fill_between(places, low, high, color=line["color"], alpha=0.14, linewidth=0)
        axes.plot(places, [estimate.value for estimate in layers], marker="o", markersize=4, clip_on=False, **line)
    plain_axes(axes)
    _layer_axis(axes, max(len(layers) for layers in auroc.values()) - 1, first=0)
    axes.set_ylim(min(0.5, *(estimate.low for layers in auroc.values() for estimate in layers)) - 0.02, 1.005)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))


def tokens_panel(title: str, told: Sequence[AnswerEnergies], key: str) -> Panel:
    """The energy that each token of an answer was chosen from, position by position, one line a model."""
    with rc_context(STYLE):
        figure, axes = _canvas(2.4, bottom=0.21)
        for answer in told:
            axes.plot(np.arange(1, len(answer.energies) + 1), answer.energies, clip_on=False, **ROLE_LINES[answer.role])
        plain_axes(axes)
        _signed_axis(axes)
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
        axes.set_xlabel("token of the answer")
        middle = "; ".join(f"{answer.role}: median {fixed(float(np.median(answer.energies)), 1)}" for answer in told)
        return Panel(title, svg_of(figure, key), f"{title}. Energy in nats, {middle}.")


Curve = Sequence[tuple[CurvePoint, Estimate]]
"""A detector's share at every number of calibration requests."""


def sizes_panel(title: str, curves: Sequence[Curve], rate: float | None, key: str) -> Panel:
    """A share over the number of calibration requests; the band (of the first detector) holds 80% of the draws.

    Open circles: too few requests for the rate's guarantee. rate: drawn as the line that should not be passed, None for none.
    """
    sizes = sorted({point.n for curve in curves for point, _ in curve})
    with rc_context(STYLE):
        figure, axes = _canvas(2.9, bottom=0.19, left=0.125)
        if rate is not None:
            axes.axhline(rate, color=AXIS, linewidth=1.4)
        for number, (line, curve) in reversed(list(enumerate(zip(LINES, curves, strict=False)))):
            _size_line(axes, line, curve, banded=number == 0)
        _shares_over_log(axes, sizes, lambda x: f"{x:g}")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("retained requests to calibrate with")
        said = "; ".join(f"{point.n}: {percent(share.value)}" for point, share in (curves[0] if curves else ()))
        return Panel(title, svg_of(figure, key), f"{title}. The first index, by number of requests: {said}.")


def _size_line(axes: Axes, line: Mapping[str, Any], curve: Curve, *, banded: bool) -> None:
    sizes, colour = [point.n for point, _ in curve], line["color"]
    if banded:
        low, high = [share.low for _, share in curve], [share.high for _, share in curve]
        axes.fill_between(sizes, low, high, color=AXIS, alpha=0.22, linewidth=0)
    axes.plot(sizes, [share.value for _, share in curve], clip_on=False, **line)
    for point, share in curve:
        style = {"markerfacecolor": colour if point.guaranteed else "none", "markeredgecolor": colour}
        axes.plot([point.n], [share.value], "o", markersize=5, clip_on=False, **style)


def _canvas(height: float, *, width: float = WIDE, left: float = 0.105, bottom: float = 0.13) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height))
    return figure, figure.add_axes((left, bottom, 0.97 - left, 0.96 - bottom))


def _edges(values: Floats, threshold: float) -> Floats:
    """Edges of equal bins between the 0.5% and the 99.5% quantile, so far that the threshold is in sight."""
    marks = [*np.quantile(values, [0.005, 0.995]), *([threshold] if np.isfinite(threshold) else [])]
    return bin_edges(np.array(marks), 44)


def _outlined(axes: Axes, heights: Floats, edges: Floats, drawn_set: DrawnSet) -> None:
    colour = KIND_COLOURS[drawn_set.kind]
    if drawn_set.drawn == "filled":
        stairs(axes, heights, edges, colour)
    else:
        dash = DASHED if drawn_set.drawn == "dashed" else DOTTED
        axes.stairs(heights, edges, color=colour, linewidth=1.4, linestyle=dash)


def _medians(sets: Sequence[DrawnSet]) -> str:
    return "; ".join(f"{s.kind}, {s.drawn}: n = {len(s.values)}, median {np.median(s.values):.4g}" for s in sets)


def _shares_over_log(axes: Axes, ticks: Sequence[float], label: Callable[[float], str]) -> None:
    """Shares over a logarithmic scale that has these marks."""
    plain_axes(axes)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(ticks)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: label(x)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: stated(round(y, 6))))


def _signed_axis(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}".replace("-", "−")))


def _layer_axis(axes: Axes, n_layers: int, first: int = 1) -> None:
    step = max(1, (n_layers + 7) // 8)
    axes.xaxis.set_major_locator(FixedLocator([float(layer) for layer in range(first, n_layers + 1, step)]))
    axes.set_xlabel("after layer" if first else "after layer (0: the embeddings)")
