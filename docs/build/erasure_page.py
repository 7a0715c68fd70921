"""The table and the figure of docs/erasure.md: what each recipe of experiments/erasure_trials.py keeps, and what comes back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from comparison_page import figure_files
from d2unlearn.report.figures import FORGET_COLOUR, RETAIN, STYLE, Drawing, plain_axes, svg_of
from d2unlearn.runtime import read_json
from tables import ROOT, table

Trial = dict[str, Any]
ATTACKED = {
    "spread, 20": ("spread over groups, 0", ", 20"),
    "spread, 80": ("spread over groups, 0", ", 80"),
    "whole authors, 80": ("whole groups", ", 80"),
    "half of each, 80": ("half of each group", ", 80"),
    "one row, 20": ("one row", ", 20"),
    "LoRA, 80": ("spread over groups, LoRA", ", 80"),
    "a layer put back": ("layer ", " restored"),
    "attention put back": ("attention restored", ""),
    "MLPs put back": ("MLP restored", ""),
}
"""By column how the names of its attacks begin and end."""
MUST = {
    "spread, 80": 0.08,
    "whole authors, 80": 0.05,
    "half of each, 80": 0.2,
    "one row, 20": 0.02,
    "a layer put back": 0.05,
    "attention put back": 0.1,
    "MLPs put back": 0.1,
}
KEPT = {"unseen": "unseen", "retain": "seen", "world_facts": "world facts"}
KEPT_MUST = {"unseen": 0.95, "retain": 0.98, "world_facts": 0.98}
COST_MUST = 6.0
DRAWN = ("spread, 80", "half of each, 80", "attention put back")
NAMES_A_LINE = 3
"""Below the panels, what their numbers stand for."""
FIGURES = ROOT / "docs" / "figures"


def trials(kept: Path) -> list[Trial]:
    """The kept trials, by cost."""
    found = [read_json(path) | {"name": name_of(path)} for path in sorted((kept / "erasure").glob("*.json"))]
    return sorted(found, key=lambda trial: (trial["seed"], trial["cost"]))


def name_of(path: Path) -> str:
    return path.stem.rsplit("-seed-", 1)[0].replace("-", " ")


def comes_back(trial: Trial, column: str) -> float:
    """The worst of a column's attacks: mean answer probability of rows that were not relearned."""
    begins, ends = ATTACKED[column]
    return max(value for name, value in trial["comes_back"].items() if name.startswith(begins) and name.endswith(ends))


def kept_share(trial: Trial, name: str) -> float:
    """Extraction strength of a retained set; the original's is 1."""
    return float(trial["rest"][name][0])


def erasure_blocks(kept: Path) -> dict[str, str]:
    rows = [
        [
            trial["name"],
            str(trial["seed"]),
            _bounded(trial["cost"], COST_MUST, at_most=True, digits=1),
            *(_bounded(comes_back(trial, column), MUST.get(column), at_most=True) for column in ATTACKED),
            *(_bounded(kept_share(trial, name), KEPT_MUST[name], at_most=False) for name in KEPT),
        ]
        for trial in trials(kept)
    ]
    musts = [f"≤ {MUST[column]:g}" if column in MUST else "" for column in ATTACKED]
    rows.append(["*must*", "", f"≤ {COST_MUST:g}", *musts, *(f"≥ {KEPT_MUST[name]:g}" for name in KEPT)])
    head = ["recipe", "seed", "cost", *ATTACKED, *KEPT.values()]
    return {"erasure": table(head, rows, "l" + "r" * (len(head) - 1))}


def _bounded(value: float, bound: float | None, *, at_most: bool, digits: int = 3) -> str:
    """In bold where a bound is met."""
    text = f"{value:.{digits}f}"
    met = bound is not None and (value <= bound if at_most else value >= bound)
    return f"**{text}**" if met else text


def erasure_figure(kept: Path) -> dict[Path, str]:
    found = trials(kept)
    source = Path(__file__).read_bytes() + repr(found).encode()
    with rc_context(STYLE):
        drawing = Drawing(svg_of(draw_front(found), "erasure"), "")
    return figure_files("erasure", drawing, source, FIGURES)


def draw_front(found: list[Trial]) -> Figure:
    """A panel an attack: what comes back against what unseen retained rows keep; the size of a point is its recipe's cost."""
    figure = Figure(figsize=(11.5, 4.2))
    panels = figure.subplots(1, len(DRAWN), sharey=True)
    figure.subplots_adjust(left=0.06, right=0.985, bottom=0.33, top=0.9, wspace=0.09)
    numbers = {name: number for number, name in enumerate(dict.fromkeys(trial["name"] for trial in found), start=1)}
    for axes, column in zip(panels, DRAWN, strict=True):
        _panel(axes, column, found, numbers)
    panels[0].set_ylabel("unseen rows kept")
    for name, number in numbers.items():
        row, column = divmod(number - 1, NAMES_A_LINE)
        figure.text(0.06 + column * 0.93 / NAMES_A_LINE, 0.12 - 0.05 * row, f"{number}: {name}", fontsize=10)
    return figure


def _panel(axes: Axes, column: str, found: list[Trial], numbers: Mapping[str, int]) -> None:
    axes.axhline(KEPT_MUST["unseen"], color=RETAIN, linewidth=1, linestyle="--")
    axes.axvline(MUST[column], color=RETAIN, linewidth=1, linestyle="--")
    for trial in found:
        at = comes_back(trial, column), kept_share(trial, "unseen")
        axes.scatter(*at, s=26 * trial["cost"] + 10, color=FORGET_COLOUR, alpha=0.75, linewidths=0)
        axes.annotate(str(numbers[trial["name"]]), at, xytext=(6, 5), textcoords="offset points", fontsize=10)
    axes.set_xlim(0, 1)
    axes.set_xlabel("answer probability that comes back")
    axes.set_title(column, loc="left", fontsize=12.5, fontweight="bold")
    plain_axes(axes)
