"""The figure of docs/serving.md: what the gate refuses in other wordings, family by family, before and after."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from comparison_page import figure_files
from d2unlearn.audit.judging import judging_wordings
from d2unlearn.report.figures import AXIS, FORGET_COLOUR, RETAIN, STYLE, Drawing, svg_of
from d2unlearn.runtime import read_json
from tables import ROOT

KEPT = Path("gate") / "wordings" / "quickstart_judging.json"
LEAST = 5
"""Requests that the original answers rightly, below which a family is not drawn."""
SETS = {"forgotten questions refused": ("forget",), "legitimate ones refused": ("unseen", "unrelated")}
COLOURS = {"forgotten questions refused": FORGET_COLOUR, "legitimate ones refused": RETAIN}


def wordings_figure(results: Path) -> dict[Path, str]:
    """A row a family, before (hollow) and after (filled)."""
    tables = read_json(results / KEPT)["by_wording"]
    source = Path(__file__).read_bytes() + repr(tables).encode()
    with rc_context(STYLE):
        drawing = Drawing(svg_of(draw_families(tables), "wordings"), "")
    return figure_files("wordings", drawing, source, ROOT / "docs" / "figures")


def family_shares(table: Mapping[str, Mapping[str, Any]], sets: Iterable[str]) -> dict[str, tuple[int, int]]:
    """(refused, asked) of each family of the judging wordings, of requests that the original answers rightly."""
    found: dict[str, tuple[int, int]] = {}
    for wording in judging_wordings():
        for name in sets:
            cell = table.get(wording.name, {}).get(name, {"refused": 0, "n": 0})
            refused, n = found.get(wording.family, (0, 0))
            found[wording.family] = refused + cell["refused"], n + cell["n"]
    return found


def draw_families(tables: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Figure:
    shares = {what: {when: family_shares(tables[when], sets) for when in ("before", "after")} for what, sets in SETS.items()}
    forgotten = shares["forgotten questions refused"]["after"]
    families = sorted((name for name, (_, n) in forgotten.items() if n >= LEAST), key=lambda name: -_share(forgotten[name]))
    figure = Figure(figsize=(9.6, 0.34 * len(families) + 1.1))
    panels = figure.subplots(1, 2, sharey=True)
    figure.subplots_adjust(left=0.25, right=0.96, bottom=0.1, top=0.92, wspace=0.16)
    for axes, (what, of) in zip(panels, shares.items(), strict=True):
        _draw_panel(axes, of, families, COLOURS[what])
        axes.set_title(what, loc="left", fontsize=12.5, fontweight="bold")
    panels[0].set_yticks(range(len(families)), [f"{name.replace('_', ' ')} ({forgotten[name][1]})" for name in families])
    panels[0].invert_yaxis()
    return figure


def _draw_panel(axes: Axes, of: Mapping[str, Mapping[str, tuple[int, int]]], families: list[str], colour: str) -> None:
    for place, family in enumerate(families):
        if not of["after"][family][1]:
            continue
        before, after = _share(of["before"][family]), _share(of["after"][family])
        axes.plot([before, after], [place, place], color=AXIS, linewidth=1.2, zorder=1)
        axes.plot([before], [place], "o", markerfacecolor="none", markeredgecolor=colour, clip_on=False)
        axes.plot([after], [place], "o", color=colour, clip_on=False)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", linewidth=0.6, alpha=0.45)
    axes.set_axisbelow(True)


def _share(cell: tuple[int, int]) -> float:
    return cell[0] / max(cell[1], 1)
