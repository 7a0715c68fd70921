"""The figures of docs/energy.md in both colours, from the kept trials: energy by layer, and what is decided wrongly."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from comparison_page import DARK, FONT, LIGHT
from d2unlearn.analysis import page_figures, page_panels
from d2unlearn.analysis.page import drawn_detectors, lowest_rate
from d2unlearn.analysis.page_figures import draw_layers, draw_separation
from d2unlearn.analysis.page_panels import layer_limits, spreads_of
from d2unlearn.analysis.records import Analysis, Estimate
from d2unlearn.analysis.significance import trial_of
from d2unlearn.report.figures import AXIS, FORGET, RETAIN, STYLE, plain_axes, svg_of
from d2unlearn.report.notation import readable, stated
from energy_seeds import ROLES, pairs_of, read_trials, wrong

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "figures"
SERIES = {"series1": ("#8250df", "#bc8cff")}
"""The page's further colour, light and dark."""


def energy_figures(results: Path) -> dict[Path, str]:
    """Both drawings in both colours. What these very numbers drew is taken as it is: versions of matplotlib differ in bytes."""
    trials = [each.analysis for each in read_trials(results)]
    sources = b"".join(Path(str(each)).read_bytes() for each in (__file__, page_figures.__file__))
    numbers = repr([(t.models, t.disturbed) for t in trials]).encode()
    mark = f"<!-- docs/build/energy_page.py {hashlib.sha256(sources + numbers).hexdigest()[:16]} -->"
    files: dict[Path, str] = {}
    for name, draw in (("energy-layers", draw_depth), ("energy-deciding", draw_deciding)):
        paths = FOLDER / f"{name}.svg", FOLDER / f"{name}-dark.svg"
        if all(path.is_file() and path.read_text(encoding="utf-8").endswith(f"{mark}\n") for path in paths):
            files |= {path: path.read_text(encoding="utf-8") for path in paths}
            continue
        with rc_context(STYLE):
            svg = svg_of(draw(trials), name).replace(
                "<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" font-family="{FONT}" ', 1
            )
        for place, path in enumerate(paths):
            palette = {**(LIGHT, DARK)[place], **{key: colours[place] for key, colours in SERIES.items()}}
            files[path] = re.sub(r"var\(--(\w+)\)", lambda found, palette=palette: palette[found[1]], svg) + mark + "\n"
    return files


def draw_depth(trials: Sequence[Analysis]) -> Figure:
    """Energies after each layer of the three models (first seed), and AUROC by layer."""
    figure = Figure(figsize=(10.8, 3.3))
    panels = figure.subplots(1, 4)
    figure.subplots_adjust(left=0.045, right=0.99, bottom=0.19, top=0.87, wspace=0.2)
    first = trials[0]
    spread = {role: spreads_of(first, trial_of(first, role).layers[-1].spread) for role in ROLES}
    for axes, role in zip(panels, ROLES, strict=False):
        draw_layers(axes, spread[role])
        axes.set_ylim(layer_limits(spread.values()))
        axes.set_title(ROLES[role].split(",")[0], loc="left", fontsize=12.5, fontweight="bold")
    draw_separation(panels[3], {role: trial_of(first, role).layers[-1].auroc for role in ROLES})
    panels[3].set_xlabel("after layer")
    panels[3].set_title("AUROC", loc="left", fontsize=12.5, fontweight="bold")
    return figure


def draw_deciding(trials: Sequence[Analysis]) -> Figure:
    """Missed and refused wrongly in other words and on general knowledge, with raised thresholds, a point a seed."""
    rate = lowest_rate(trials[0])
    indices = drawn_detectors(trials[0])
    _, (forget, retain) = pairs_of(trials)[0], pairs_of(trials)[-1]
    general = page_panels.general_sets(trials[0])[-1:]
    figure = Figure(figsize=(10.8, 0.42 * len(indices) + 1.1))
    columns = [(forget, FORGET), (retain, RETAIN), *((name, RETAIN) for name in general)]
    panels = figure.subplots(1, len(columns), sharey=True)
    figure.subplots_adjust(left=0.215, right=0.985, bottom=0.1, top=0.88, wspace=0.1)
    for axes, (name, colour) in zip(panels, columns, strict=True):
        _dots(axes, [wrong(trials, index.name, name, rate, "raised") for index in indices], colour)
        axes.set_title(f"{'missed' if name == forget else 'refused'}: {readable(name)}", loc="left", fontsize=12.5)
    panels[0].set_yticks(range(len(indices)), [index.name for index in indices])
    panels[0].set_ylim(len(indices) - 0.4, -0.6)
    return figure


def _dots(axes: Axes, rows: Sequence[Sequence[Estimate]], colour: str) -> None:
    for place, row in enumerate(rows):
        for seed, each in enumerate(row):
            height = place + 0.17 * (seed - (len(row) - 1) / 2)
            axes.plot([each.low, each.high], [height, height], color=colour, linewidth=1.6, alpha=0.55)
            axes.plot([each.value], [height], "o", color=colour, markersize=4.2, clip_on=False)
    plain_axes(axes)
    axes.grid(axis="x", linewidth=0.6, alpha=0.45)
    axes.grid(visible=False, axis="y")
    axes.axvline(0, color=AXIS, linewidth=1)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(lambda x, _: stated(round(x, 6)))
    axes.set_xlim(left=0)
