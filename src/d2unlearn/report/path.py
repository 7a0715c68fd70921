"""The path of a run that steered by targets: what was forgotten and what stayed, step by step, with the targets as lines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from d2unlearn.report.figures import AXIS, FORGET_COLOUR, INK, RETAIN, SERIES, STYLE, Drawing, svg_of

_LEAST = 1e-6
"""Probabilities are drawn from here on: their axis is logarithmic."""


def path_drawing(recipe: Mapping[str, Any]) -> Drawing | None:
    """From what the manifest holds of the recipe; None where there is no path to draw."""
    path: Sequence[Mapping[str, Any]] = recipe.get("path", [])
    if not path:
        return None
    steps = [0, *(point["step"] for point in path)]
    forget = [recipe["before"]["forget"], *(point["forget"] for point in path)]
    shares = {"retained": [1.0, *(p["retain"] for p in path)], "near": [1.0, *(p["near"] for p in path)]}
    with rc_context(STYLE):
        figure = Figure(figsize=(9.2, 2.9))
        left, right = figure.add_axes((0.075, 0.19, 0.4, 0.7)), figure.add_axes((0.575, 0.19, 0.4, 0.7))
        left.plot(steps, [max(value, _LEAST) for value in _numbers(forget)], color=FORGET_COLOUR, marker="o", markersize=3.5)
        left.set_yscale("log")
        for (name, values), colour in zip(shares.items(), (RETAIN, SERIES[0]), strict=True):
            if any(value is not None for value in values[1:]):
                right.plot(steps, _numbers(values), color=colour, marker="o", markersize=3.5, label=name)
        right.legend(frameon=False, loc="lower left")
        _finished(left, recipe["forget_below"], recipe["kept_step"], "answer probability of forgotten rows")
        _finished(right, recipe["keep_at_least"], recipe["kept_step"], "share of right tokens that stayed")
        svg = svg_of(figure, "path")
    points = "; ".join(f"step {step}: forget {_said(p)}" for step, p in zip(steps, forget, strict=True))
    targets = f"forget at most {recipe['forget_below']:.3g}, keep at least {recipe['keep_at_least']:g}"
    return Drawing(svg, f"{points}. Targets: {targets}.")


def _finished(axes: Axes, target: float, kept: int | None, title: str) -> None:
    """The target as a dashed line, the step whose weights were kept as an upright one."""
    axes.axhline(target, color=INK, linewidth=1.0, linestyle="--")
    if kept is not None:
        axes.axvline(kept, color=AXIS, linewidth=1.0)
    axes.set_title(title, fontsize=12.5, loc="left", color=INK)
    axes.set_xlabel("step")
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def _numbers(values: Sequence[float | None]) -> list[float]:
    """NaN, which is a gap in a line, where there is no number."""
    return [math.nan if value is None else value for value in values]


def _said(value: float | None) -> str:
    return "no number" if value is None else f"{value:.3g}"
