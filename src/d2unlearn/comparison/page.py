"""The pages of a comparison: an index with tables and the trade-off, and for each contestant its energies and answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d2unlearn.comparison.markdown import cell_text, filled_columns, parameters_text, seeds_in_words
from d2unlearn.comparison.records import ORIGINAL, PROPOSED_METHOD
from d2unlearn.comparison.table import Row, Section, SplitTable, everybody_in
from d2unlearn.comparison.tradeoff import tradeoff
from d2unlearn.comparison.win_tie_loss import duels
from d2unlearn.comparison.words import SUMMARY, in_words, plain_words, reading
from d2unlearn.report.figures import Drawing
from d2unlearn.report.gate import read_gate_summary
from d2unlearn.report.html import build, template
from d2unlearn.runtime import atomic_write, read_json
from d2unlearn.schema import EVALUATION_FILE, GATE_FILE, MANIFEST_FILE, GateSummary
from d2unlearn.serialization import read_evaluation

INDEX = "index.html"
ARROWS = {"lower": ("↓", "lower is better"), "higher": ("↑", "higher is better"), "neither": ("·", "neither is better")}


@dataclass(frozen=True)
class Line:
    """A contestant's row in one table. links: (seed, page) where its answers are at hand."""

    name: str
    note: str
    mark: str
    links: tuple[tuple[str, str], ...]
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Grid:
    """One section: its heads as (label, arrow, what the arrow says), and its rows."""

    title: str
    heads: tuple[tuple[str, str, str], ...]
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Part:
    """One split."""

    name: str
    sizes: str
    measured_on: str
    seeds: str
    paragraph: str
    reading: str
    words: tuple[str, ...]
    figures: tuple[Drawing, ...]
    grids: tuple[Grid, ...]
    tunings: tuple[tuple[str, ...], ...]


def write_pages(tables: Sequence[SplitTable], answers: Path, output: Path) -> Path:
    """Write the index and a page of each judgement whose answers are in `answers`; the index's path.

    answers: SPLIT/CONTESTANT/seed-N/evaluation.json, with the gate's file beside it where there is one.
    """
    folders = [path.parent for path in sorted(answers.glob(f"*/*/seed-*/{EVALUATION_FILE}"))]
    pages = {str(folder.relative_to(answers)): folder for folder in folders}
    links = {key: f"{key}.html" for key in pages}
    for table in tables:
        first = next((key for key in sorted(pages) if key.startswith(f"{table.split}/{ORIGINAL}/")), None)
        for key, folder in pages.items():
            if first is not None and key.startswith(f"{table.split}/"):
                atomic_write(output / links[key], contestant_page(key, pages[first], folder))
    path = output / INDEX
    atomic_write(path, index_page(tables, links))
    return path.resolve()


def contestant_page(key: str, original: Path, folder: Path) -> str:
    """Energies before and after, what the guard sees, every number, and answers side by side."""
    before, after = read_evaluation(original / EVALUATION_FILE), read_evaluation(folder / EVALUATION_FILE)
    split, contestant, seed = key.split("/")
    facts: dict[str, Any] = {"split": split, "contestant": contestant, "seed": int(seed.removeprefix("seed-"))}
    manifest = folder / MANIFEST_FILE
    if manifest.is_file():
        made = read_json(manifest)
        facts |= {"method": made.get("method", {}), "learning rate": made.get("learning_rate")}
    return build(before, after, _gate(folder), facts)


def index_page(tables: Sequence[SplitTable], links: Mapping[str, str]) -> str:
    """The index as one HTML document that loads nothing."""
    everybody = everybody_in(tables)
    parts = tuple(_part(table, place, links, everybody) for place, table in enumerate(tables))
    return template("comparison", "page.html.j2").render(parts=parts, summary=SUMMARY)


def _part(table: SplitTable, place: int, links: Mapping[str, str], everybody: Sequence[str]) -> Part:
    drawings = tradeoff(table, f"tradeoff{place}", everybody), duels(table, f"duels{place}")
    return Part(
        table.split,
        ", ".join(f"{name.replace('_', ' ')} {n:,}" for name, n in table.sizes.items()),
        "; ".join(table.machines),
        seeds_in_words(table.rows),
        plain_words(table),
        reading(table),
        tuple(line.removeprefix("- ") for line in in_words(table.outcomes)),
        tuple(each for each in drawings if each is not None),
        tuple(_grid(table, each, links) for each in table.sections if filled_columns(each, table.rows)),
        tuple(
            (each.contestant, str(each.trials), str(each.worthless), f"{each.score:.4f}", parameters_text(each.parameters))
            for each in table.tunings
        ),
    )


def _grid(table: SplitTable, section: Section, links: Mapping[str, str]) -> Grid:
    columns = filled_columns(section, table.rows)
    heads = tuple((column.label, *ARROWS[column.better]) for column in columns)
    lines = []
    for row in table.rows:
        cells = tuple(cell_text(row.cells.get(column.key), column) for column in columns)
        lines.append(Line(row.contestant.replace("_", " "), row.note, _mark(row), _links(table.split, row, links), cells))
    return Grid(section.title, heads, tuple(lines))


def _links(split: str, row: Row, links: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    keys = {seed: f"{split}/{row.contestant}/seed-{seed}" for seed in row.seeds}
    return tuple((str(seed), links[key]) for seed, key in keys.items() if key in links)


def _mark(row: Row) -> str:
    return "own" if row.contestant == PROPOSED_METHOD else "as-is" if row.kind == "as_is" else ""


def _gate(folder: Path) -> GateSummary | None:
    return read_gate_summary(folder) if (folder / GATE_FILE).is_file() else None
