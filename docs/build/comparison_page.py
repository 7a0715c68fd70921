"""The results in docs/comparison.md with their figures, and their digest for docs/results.md: from the kept results alone."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from d2unlearn.comparison import tradeoff, win_tie_loss
from d2unlearn.comparison.markdown import HOW_COMPARED, filled_columns, outcome_table, parts_of, section_table, seeds_text
from d2unlearn.comparison.objective import OBJECTIVE
from d2unlearn.comparison.outcomes import RELEARNED
from d2unlearn.comparison.output import known_runs, tables_of
from d2unlearn.comparison.plan import Comparison, comparison_of
from d2unlearn.comparison.store import Store, read_results
from d2unlearn.comparison.table import SplitTable, TableSection, entries_in, split_table
from d2unlearn.config import CompareSettings, load_settings
from d2unlearn.guards import GUARDS
from d2unlearn.methods import METHODS
from d2unlearn.report.figures import Drawing
from tables import ROOT

LIGHT = {"forget": "#bc4c00", "retain": "#0969da", "axis": "#59636e", "ink": "#1f2328", "series1": "#8250df"}
DARK = {"forget": "#f0883e", "retain": "#58a6ff", "axis": "#9198a1", "ink": "#e6edf3", "series1": "#bc8cff"}
FONT = "-apple-system,'Segoe UI',Helvetica,Arial,sans-serif"
ATTACKED = "comparison-attacks"
"""The folder of experiments/comparison_attacks.py, beside the comparison's."""
DIGEST = {
    "Raw weights": (
        "forget.extraction_strength",
        "suite.forget_quality",
        "forget_paraphrased.leak_rate",
        "suite.model_utility",
        "retain.extraction_strength",
        *RELEARNED,
        "cost.time",
    ),
    "Behind the guard": (
        "forget.guarded_refusal_rate",
        "forget_paraphrased.guarded_refusal_rate",
        "forget.guarded_leak_rate",
        "forget_paraphrased.guarded_leak_rate",
        "retain.guarded_refusal_rate",
        "retain_paraphrased.guarded_refusal_rate",
        "world_facts.guarded_refusal_rate",
    ),
}
"""The columns that docs/results.md shows, in two tables."""
DIGEST_INTRODUCTION = """## Methods side by side

Methods and guards, tuned with the same number of trials and evaluated once; forget05 shows the strongest of forget10 alone. All
columns, how parameters were chosen, what is a win or a tie and what to read with care: [comparison.md](comparison.md). "Gate
refuses" and leaks behind it are of each model's own gate or guard; a method that refuses in words shows there as one that
refuses little. "Whole authors, 20 steps" is the answer probability on nine tenths of the forgotten rows after relearning the
other tenth; time is training time. ¹ A guard: its weights are the original's.
"""


@cache
def kept(results: Path) -> tuple[Comparison, Store, list[SplitTable]]:
    """The comparison that was asked for, its results, and the table of every split that has a run."""
    settings = load_settings(CompareSettings, ROOT / "experiments" / "comparison.yaml", {})
    comparison, store = comparison_of(settings, methods=METHODS, guards=GUARDS), Store(ROOT / settings.output, results)
    return comparison, store, tables_of(comparison, store)


def comparison_blocks(results: Path) -> dict[str, str]:
    """What is there, split by split: figures, wins and losses, tables."""
    comparison, store, tables = kept(results)
    parts = [_by_hand(comparison), "## What is there\n", _state(comparison, store), f"{HOW_COMPARED}\n"]
    for table in tables:
        parts.append(f"## {table.split}\n")
        parts += [_picture(results / name, drawn.description) for name, drawn, _ in _figures(table, entries_in(tables))]
        parts += parts_of(table, objective=OBJECTIVE)
    return {"comparison": "\n".join(parts).rstrip(), "comparison-attacks": attacked_table(results.with_name(ATTACKED))}


def attacked_table(results: Path) -> str:
    """What experiments/comparison_attacks.py kept: relearning and other words, on artifacts that were there already."""
    runs, _ = read_results(results)
    if not runs:
        return "Not measured yet.\n"
    made = split_table(runs[0].split, runs, [], {})
    sections = [section for section in made.sections if filled_columns(section, made.rows)]
    asked = ", ".join(f"{name.replace('_', ' ')} {n}" for name, n in made.sizes.items())
    parts = [f"Asked: {asked}. Measured on: {', '.join(made.machines)}.\n"]
    for section in sections:
        parts += [f"### {section.title}\n", f"{section_table(section, made.rows)}\n"]
    return "\n".join(parts).rstrip()


def comparison_figures(results: Path) -> dict[Path, str]:
    """The figures of all splits in both colours."""
    tables = kept(results)[2]
    drawn = [figure for table in tables for figure in _figures(table, entries_in(tables))]
    return {path: text for figure in drawn for path, text in figure_files(*figure, results).items()}


def figure_files(name: str, drawn: Drawing, source: bytes, folder: Path) -> dict[Path, str]:
    """A figure as files for both colours. What this very source drew is taken as it is: versions of matplotlib differ in bytes.

    source: the drawing's code, and the numbers that it draws.
    """
    paths = folder / f"{name}.svg", folder / f"{name}-dark.svg"
    mark = f"<!-- docs/build/comparison_page.py {hashlib.sha256(source).hexdigest()[:16]} -->\n"
    if all(path.is_file() and path.read_text(encoding="utf-8").endswith(mark) for path in paths):
        return {path: path.read_text(encoding="utf-8") for path in paths}
    svg = drawn.svg.replace("<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" font-family="{FONT}" ', 1) + mark
    return {
        path: re.sub(r"var\(--(\w+)\)", lambda colour, palette=palette: palette[colour[1]], svg)
        for path, palette in zip(paths, (LIGHT, DARK), strict=True)
    }


def comparison_section(results: Path) -> str:
    """The digest: per split the main columns of every entry that is evaluated, and how often EUA wins and loses."""
    parts = [DIGEST_INTRODUCTION]
    for table in kept(results)[2]:
        columns = {column.key: column for section in table.sections for column in section.columns}
        rows = [row for row in table.rows if row.seeds]
        parts += [f"### {table.split}\n", f"{seeds_text(rows)}\n"]
        for title, keys in DIGEST.items():
            section = TableSection(title, tuple(columns[key] for key in keys if key in columns))
            parts += [f"#### {title}\n", f"{section_table(section, rows)}\n"]
        parts += ["#### EUA against the others\n", f"{outcome_table(table.outcomes)}\n"]
    return "\n".join(parts)


def _by_hand(comparison: Comparison) -> str:
    """The parameters that were set for the comparison, beside what is published."""
    said = [
        f"`{name}` of {entry} is {value:g} ({getattr(METHODS[entry](), name):g} as published)"
        for entry, space in comparison.spaces.items()
        for name, value in space.fixed.items()
    ]
    return f"Set for this comparison, and not tried otherwise: {', '.join(said)}.\n" if said else ""


def _state(comparison: Comparison, store: Store) -> str:
    """How many of each split's runs are kept, and which are missing."""
    lines = []
    for split in comparison.splits:
        runs = [run for run in known_runs(comparison, store) if run.split == split.name]
        missing = [run.key for run in runs if not store.is_done(run)]
        of_other = f" (the {split.strongest} strongest of {split.strongest_of}, by validation score)" if split.strongest else ""
        without = f"; missing: {', '.join(missing)}" if missing else ""
        lines.append(f"- {split.name}{of_other}: {len(runs) - len(missing)} of {len(runs)} runs{without}.")
    return "\n".join(lines) + "\n"


def _figures(table: SplitTable, everybody: list[str]) -> Iterator[tuple[str, Drawing, bytes]]:
    """Name, drawing and what it was drawn from (the code and the numbers): the trade-off, and EUA against everybody."""
    for name, module, drawn, numbers in (
        (table.split, tradeoff, tradeoff.tradeoff(table, everybody=everybody), (table.rows, everybody)),
        (f"{table.split}-win-tie-loss", win_tie_loss, win_tie_loss.win_tie_loss(table), table.outcomes),
    ):
        if drawn is not None:
            yield name, drawn, Path(module.__file__).read_bytes() + repr(numbers).encode()


def _picture(file: Path, description: str) -> str:
    """A figure in both colours."""
    path = f"../{file.relative_to(ROOT)}"
    return (
        f'<picture>\n<source media="(prefers-color-scheme: dark)" srcset="{path}-dark.svg">\n'
        f'<img alt="{description}" src="{path}.svg">\n</picture>\n'
    )
