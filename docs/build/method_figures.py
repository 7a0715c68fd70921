"""The figures of docs/method.md, drawn from the package's own functions; its numbers are in method_numbers.py.

`make docs` draws those of docs/figures/NAME.svg and NAME-dark.svg that are stale. Each drawing is made once, in the light
palette; its dark twin is the same text with other colours.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import beta, norm
from torch import Tensor

from d2unlearn.energy import centred_energy, free_energy, reference_margins
from d2unlearn.gate.score import Highest, running_scores
from d2unlearn.stats import conformal_rank
from method_numbers import METHOD, RATE, WIDE, noisy, peaked, signed
from tables import ROOT

FOLDER = ROOT / "docs" / "figures"
COLOURS = {
    "ink": ("#1f2328", "#e6edf3"),
    "muted": ("#59636e", "#9198a1"),
    "grid": ("#d1d9e0", "#3d444d"),
    "retain": ("#0969da", "#58a6ff"),
    "forget": ("#bc4c00", "#f0883e"),
    "centred": ("#8250df", "#bc8cff"),
}
"""On light and on dark pages."""
INK, MUTED, GRID, RETAIN, FORGET, CENTRED = (light for light, _ in COLOURS.values())
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "d2unlearn",
    "font.size": 12,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 12.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "axes.unicode_minus": True,
}
FONT = "-apple-system,'Segoe UI',Helvetica,Arial,sans-serif"
WIDTH = 780
"""Pixels: what a page on GitHub has room for."""


def energy() -> Figure:
    """Energy and centred energy while one logit rises, and while a constant is added to all."""
    figure = Figure(figsize=(WIDTH / 72, 300 / 72))
    left, right = figure.subplots(1, 2, sharey=True)
    figure.subplots_adjust(left=0.085, right=0.985, bottom=0.17, top=0.88, wspace=0.09)
    answer = torch.linspace(0, 30, 61, dtype=torch.float64)
    risen = torch.stack([peaked(float(a)) for a in answer])
    draw_energies(left, answer, risen)
    left.set(
        title="One logit rises, the others stay 0", xlabel="logit of the answer", ylabel="nats", ylim=(-32, 14), xlim=(0, 30)
    )
    even = float(np.log(WIDE - 1))
    left.plot([even], [float(free_energy(peaked(even)))], "o", color=INK, markersize=4.5, zorder=5)
    left.annotate("probability ½", (even + 0.3, -6.6), color=INK)
    left.annotate("energy and centred energy:\nhere they are the same", (3, -27), color=RETAIN)
    left.annotate("−log V", (25.6, -7.2), color=MUTED)
    shift = torch.linspace(-35, 5, 9, dtype=torch.float64)
    draw_energies(right, shift, peaked(27).unsqueeze(0) + shift.unsqueeze(1))
    right.set(title="A constant is added to all logits", xlabel="constant", xlim=(5, -33))
    right.annotate("energy", (-16.5, -3.4), color=RETAIN)
    right.annotate("centred energy, and with it\nthe probabilities: unchanged", (-11.2, -24.4), color=CENTRED)
    right.annotate("−log V", (3.9, -7.2), color=MUTED)
    return figure


def draw_energies(axes: Axes, along: Tensor, logits: Tensor) -> None:
    """E, E_c and the energy of knowing nothing. along: [P]; logits: [P, V]."""
    axes.axhline(-np.log(WIDE), color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.plot(along, free_energy(logits), color=RETAIN, linewidth=2)
    axes.plot(along, centred_energy(logits), color=CENTRED, linewidth=2.4, linestyle=(0, (1, 1.6)))
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)


def hinges() -> Figure:
    """EUA's two penalties over the energy of a position, for a reference that knew the answer."""
    figure = Figure(figsize=(WIDTH / 72, 250 / 72))
    axes = figure.add_axes((0.085, 0.2, 0.9, 0.74))
    m_in, m_out = map(float, reference_margins(noisy(WIDE), METHOD.ratio))
    along = np.linspace(-32, 0, 65)
    curves = ((np.maximum(along - m_in, 0) ** 2, RETAIN), (np.maximum(m_out - along, 0) ** 2, FORGET))
    for penalty, colour in curves:
        axes.plot(along, penalty, color=colour, linewidth=2)
        axes.fill_between(along, penalty, color=colour, alpha=0.1, linewidth=0)
    for margin, name, colour in ((m_in, "m_in", RETAIN), (m_out, "m_out", FORGET)):
        axes.axvline(margin, color=colour, linewidth=1, linestyle=(0, (4, 3)))
        inside = {"ha": "left"} if colour == RETAIN else {"ha": "right"}
        axes.annotate(f"{name} = {signed(margin)}", (margin + (0.3 if colour == RETAIN else -0.3), 465), color=colour, **inside)
    axes.annotate("a retained position\nmay not rise above m_in", (-11.6, 330), ha="right", color=RETAIN)
    axes.annotate("a forget position\nis pushed above m_out", (-22.3, 215), color=FORGET)
    axes.set(xlim=(-32, 0), ylim=(0, 510), xlabel="energy of the position in training, E / T", ylabel="squared hinge")
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.tick_params(axis="y", length=0)
    return figure


SCORE = Highest(2)
DRAWN_THRESHOLD = -15.0
LENGTH = 24


def running() -> Figure:
    """Energies of three drawn answers and their running score: a staircase that a threshold cuts once."""
    figure = Figure(figsize=(WIDTH / 72, 270 / 72))
    panels = figure.subplots(1, 3, sharey=True)
    figure.subplots_adjust(left=0.085, right=0.985, bottom=0.185, top=0.87, wspace=0.07)
    rng = np.random.default_rng(3)
    forgotten_from = {"retained": LENGTH, "forgotten": 0, "forgotten, from the middle on": 12}
    for axes, (title, start) in zip(panels, forgotten_from.items(), strict=True):
        centre = np.where(np.arange(LENGTH) < start, -25.0, -10.0)
        energies = rng.normal(centre, 1.8)
        if start == LENGTH:
            energies[9] = -10.5  # what a retained answer has too: one token that nothing tells
        draw_running(axes, energies, RETAIN if start == LENGTH else FORGET)
        axes.set(title=title, xlabel="position", xlim=(-1, LENGTH), ylim=(-32, -4))
    panels[0].set_ylabel("energy, nats")
    panels[0].annotate("threshold", (0, DRAWN_THRESHOLD + 0.8), color=INK)
    panels[0].annotate("running score", (10.2, -18.9), color=RETAIN)
    panels[0].annotate("energy of each position", (3.5, -31), color=MUTED)
    panels[1].annotate("refused", (2.4, -10.2), color=INK, weight="bold")
    return figure


def draw_running(axes: Axes, energies: np.ndarray, colour: str) -> None:
    """Dots for energies, steps for the running score, up to the look that refuses; a cross there."""
    scores = np.array(running_scores(SCORE, energies.tolist()))
    over = np.flatnonzero(scores > DRAWN_THRESHOLD)
    last = int(over[0]) if len(over) else LENGTH - 1
    seen = np.arange(SCORE.count - 1, last + 1)
    axes.axhline(DRAWN_THRESHOLD, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.plot(np.arange(last + 1), energies[: last + 1], "o", color=MUTED, markersize=3.4)
    axes.plot(seen, scores[seen], color=colour, linewidth=2, drawstyle="steps-post")
    if len(over):
        axes.plot([last], [scores[last]], "X", color=colour, markersize=10)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.tick_params(axis="y", length=0)


def conformal() -> Figure:
    """Left: where a fresh score falls among 19. Right: how the true share of false refusals varies with the calibration."""
    figure = Figure(figsize=(WIDTH / 72, 260 / 72))
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.05))
    figure.subplots_adjust(left=0.02, right=0.985, bottom=0.19, top=0.86, wspace=0.1)
    draw_gaps(left, n=19, rate=0.1)
    draw_spread(right)
    return figure


def draw_gaps(axes: Axes, n: int, rate: float) -> None:
    """n calibration scores cut the line into n + 1 gaps; a fresh score falls into each with the same probability."""
    scores = norm.ppf(np.arange(1, n + 1) / (n + 1)) * 1.35
    rank = conformal_rank(n, rate)
    edge = scores[rank - 1]
    axes.axvspan(edge, 3.2, ymin=0.38, ymax=0.62, color=FORGET, alpha=0.16, linewidth=0)
    axes.plot(scores, np.zeros(n), "o", color=RETAIN, markersize=6)
    axes.axvline(edge, ymin=0.3, ymax=0.72, color=INK, linewidth=1.4)
    axes.annotate(f"threshold: the {rank}th\nof {n} sorted scores", (edge, 0.5), ha="center", va="bottom")
    axes.annotate(f"{n + 1 - rank} of {n + 1} gaps\nare refused", (3.2, -0.32), ha="right", va="top", color=FORGET)
    axes.annotate(f"a fresh score falls into each\nof the {n + 1} gaps alike: 1/{n + 1}", (-2.6, -0.32), va="top", color=MUTED)
    axes.set(title=f"{n} scores, at most {rate:.0%} refused", xlim=(-2.7, 3.2), ylim=(-1, 1))
    axes.set_axis_off()


def draw_spread(axes: Axes) -> None:
    """Densities of the true share of false refusals: Beta(n + 1 - rank, rank)."""
    along = np.linspace(0.0001, 0.04, 120)
    drawn = ((260, None, RETAIN), (1000, None, CENTRED), (1000, 0.9, FORGET))
    for n, confidence, colour in drawn:
        rank = conformal_rank(n, RATE, confidence)
        axes.plot(100 * along, beta(n + 1 - rank, rank).pdf(along), color=colour, linewidth=2)
    axes.axvline(100 * RATE, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate("1% stated", (1.06, 232), color=INK)
    axes.annotate("1,000 prompts, 90% confidence", (1.06, 176), color=FORGET)
    axes.annotate("1,000 prompts, on average", (1.24, 104), color=CENTRED)
    axes.annotate("260 prompts, on average", (1.75, 40), color=RETAIN)
    axes.set(
        title="Calibrations differ",
        xlabel="true share of false refusals, %",
        xlim=(0, 4),
        ylim=(0, 255),
        xticks=range(5),
        yticks=[],
    )
    axes.spines["left"].set_visible(False)


FIGURES: dict[str, Callable[[], Figure]] = {"energy": energy, "hinges": hinges, "running": running, "conformal": conformal}


# -- files --------------------------------------------------------------------------------------------------------------


def figure_files() -> dict[Path, str]:
    """Path and text of every drawing. What this very script drew is taken as it is: versions of matplotlib differ in bytes."""
    sources = b"".join((Path(__file__).parent / name).read_bytes() for name in ("method_figures.py", "method_numbers.py"))
    mark = f"<!-- docs/build/method_figures.py {hashlib.sha256(sources).hexdigest()[:16]} -->"
    files = {}
    for name, draw in FIGURES.items():
        paths = FOLDER / f"{name}.svg", FOLDER / f"{name}-dark.svg"
        if all(path.is_file() and path.read_text(encoding="utf-8").endswith(f"{mark}\n") for path in paths):
            files |= {path: path.read_text(encoding="utf-8") for path in paths}
        else:
            svg = rendered(draw) + mark + "\n"
            files |= {paths[0]: svg, paths[1]: recoloured(svg)}
    return files


def rendered(draw: Callable[[], Figure]) -> str:
    """A figure as a small SVG file: transparent, in the reader's own font, sized in pixels."""
    text = io.StringIO()
    with rc_context(STYLE):
        draw().savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(width|height)="([\d.]+)pt"', r'\1="\2"', svg)
    svg = re.sub(r"font-family:[^;\"]*;?", "", svg).replace("<svg ", f'<svg font-family="{FONT}" ', 1)
    svg = re.sub(r"(\d+\.\d{2})\d+", r"\1", svg)
    return re.sub(r"\s*\n\s*", "\n", svg)


def recoloured(svg: str) -> str:
    for light, dark in COLOURS.values():
        svg = svg.replace(light, dark)
    return svg
