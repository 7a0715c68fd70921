"""The figures of docs/energy.md in both colours, from the kept trials: energy by layer, and what is decided wrongly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from comparison_page import figure_files
from d2unlearn.analysis import page_figures
from d2unlearn.analysis.page import drawn_detectors, lowest_rate
from d2unlearn.analysis.page_figures import draw_layers, draw_separation
from d2unlearn.analysis.page_panels import general_sets, layer_limits, spreads_of
from d2unlearn.analysis.records import Analysis, Estimate
from d2unlearn.analysis.significance import trial_of, wordings
from d2unlearn.report.figures import AXIS, FORGET_COLOUR, RETAIN, STYLE, Drawing, plain_axes, svg_of
from d2unlearn.report.notation import readable, stated
from energy_trials import ROLES, read_trials, wrong_shares
from tables import ROOT


def energy_figures(results: Path) -> dict[Path, str]:
    """Both drawings in both colours."""
    trials = [kept.analysis for kept in read_trials(results)]
    code = b"".join(Path(str(module)).read_bytes() for module in (__file__, page_figures.__file__))
    source = code + repr([(trial.models, trial.disturbed) for trial in trials]).encode()
    files: dict[Path, str] = {}
    for name, draw in (("energy-layers", draw_depth), ("energy-deciding", draw_deciding)):
        with rc_context(STYLE):
            drawing = Drawing(svg_of(draw(trials), name), "")
        files |= figure_files(name, drawing, source, ROOT / "docs" / "figures")
    return files


def draw_depth(trials: Sequence[Analysis]) -> Figure:
    """Energies after each layer of the three models (first seed), and AUROC by layer."""
    figure = Figure(figsize=(10.8, 3.3))
    panels = figure.subplots(1, 4)
    figure.subplots_adjust(left=0.045, right=0.99, bottom=0.19, top=0.87, wspace=0.2)
    layers = {role: trial_of(trials[0], role).layers[-1] for role in ROLES}
    spreads = {role: spreads_of(trials[0], energies.spread) for role, energies in layers.items()}
    for axes, role in zip(panels, ROLES, strict=False):
        draw_layers(axes, spreads[role])
        axes.set_ylim(layer_limits(spreads.values()))
        axes.set_title(ROLES[role], loc="left", fontsize=12.5, fontweight="bold")
    draw_separation(panels[3], {role: energies.auroc for role, energies in layers.items()})
    panels[3].set_xlabel("after layer")
    panels[3].set_title("AUROC", loc="left", fontsize=12.5, fontweight="bold")
    return figure


def draw_deciding(trials: Sequence[Analysis]) -> Figure:
    """Missed and refused wrongly in other words and on general knowledge, with raised thresholds, a point a seed."""
    rate, names = lowest_rate(trials[0]), [detector.name for detector in drawn_detectors(trials[0])]
    forget, retain = wordings(trials[0].sets)[-1]
    columns = {forget: FORGET_COLOUR, retain: RETAIN, **dict.fromkeys(general_sets(trials[0])[-1:], RETAIN)}
    figure = Figure(figsize=(10.8, 0.42 * len(names) + 1.1))
    panels = figure.subplots(1, len(columns), sharey=True)
    figure.subplots_adjust(left=0.215, right=0.985, bottom=0.1, top=0.88, wspace=0.1)
    for axes, (name, colour) in zip(panels, columns.items(), strict=True):
        _dots(axes, [wrong_shares(trials, detector, name, rate, "raised") for detector in names], colour)
        axes.set_title(f"{'missed' if name == forget else 'refused'}: {readable(name)}", loc="left", fontsize=12.5)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    return figure


def _dots(axes: Axes, rows: Sequence[Sequence[Estimate]], colour: str) -> None:
    for place, by_seed in enumerate(rows):
        for seed, share in enumerate(by_seed):
            height = place + 0.17 * (seed - (len(by_seed) - 1) / 2)
            axes.plot([share.low, share.high], [height, height], color=colour, linewidth=1.6, alpha=0.55)
            axes.plot([share.value], [height], "o", color=colour, markersize=4.2, clip_on=False)
    plain_axes(axes)
    axes.grid(axis="x", linewidth=0.6, alpha=0.45)
    axes.grid(visible=False, axis="y")
    axes.axvline(0, color=AXIS, linewidth=1)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(lambda x, _: stated(round(x, 6)))
    axes.set_xlim(left=0)
