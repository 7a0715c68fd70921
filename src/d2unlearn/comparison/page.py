"""The pages of a comparison: an index with tables and figures, and for each entry its energies and answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from d2unlearn.comparison import markdown
from d2unlearn.comparison.records import ORIGINAL, PROPOSED_METHOD
from d2unlearn.comparison.table import EntryRow, SplitTable, entries_in
from d2unlearn.comparison.tradeoff import tradeoff
from d2unlearn.comparison.win_tie_loss import win_tie_loss
from d2unlearn.report.gate import read_gate_summary
from d2unlearn.report.html import build, template
from d2unlearn.report.tables import ARROWS
from d2unlearn.runtime import atomic_write, read_json
from d2unlearn.schema import EVALUATION_FILE, MANIFEST_FILE
from d2unlearn.serialization import read_evaluation


def write_pages(tables: Sequence[SplitTable], answers: Path, output: Path) -> Path:
    """Write the index and a page of each run whose answers are in `answers`; the index's path.

    answers: SPLIT/ENTRY/seed-N/evaluation.json, with the gate's file beside it where there is one.
    """
    folders = [path.parent for path in sorted(answers.glob(f"*/*/seed-*/{EVALUATION_FILE}"))]
    pages = {str(folder.relative_to(answers)): folder for folder in folders}
    links = {key: f"{key}.html" for key in pages}
    for table in tables:
        first = next((key for key in sorted(pages) if key.startswith(f"{table.split}/{ORIGINAL}/")), None)
        for key, folder in pages.items():
            if first is not None and key.startswith(f"{table.split}/"):
                atomic_write(output / links[key], entry_page(key, pages[first], folder))
    path = output / "index.html"
    atomic_write(path, index_page(tables, links))
    return path.resolve()


def entry_page(key: str, original: Path, folder: Path) -> str:
    """Energies before and after, what the guard sees, every number, and answers side by side."""
    before, after = read_evaluation(original / EVALUATION_FILE), read_evaluation(folder / EVALUATION_FILE)
    split, entry, seed = key.split("/")
    facts: dict[str, Any] = {"split": split, "contestant": entry, "seed": int(seed.removeprefix("seed-"))}
    manifest = folder / MANIFEST_FILE
    if manifest.is_file():
        made = read_json(manifest)
        facts |= {"method": made.get("method", {}), "learning rate": made.get("learning_rate")}
    return build(before, after, read_gate_summary(folder), facts)


def index_page(tables: Sequence[SplitTable], links: Mapping[str, str]) -> str:
    """The index as one HTML document that loads nothing."""
    everybody = entries_in(tables)
    figures = [
        [tradeoff(table, f"tradeoff{number}", everybody), win_tie_loss(table, f"win-tie-loss{number}")]
        for number, table in enumerate(tables)
    ]

    def links_of(split: str, row: EntryRow) -> list[tuple[int, str]]:
        keys = {seed: f"{split}/{row.contestant}/seed-{seed}" for seed in row.seeds}
        return [(seed, links[key]) for seed, key in keys.items() if key in links]

    return template("comparison", "page.html.j2").render(
        splits=list(zip(tables, figures, strict=True)),
        arrows=ARROWS,
        proposed=PROPOSED_METHOD,
        texts=markdown,
        links_of=links_of,
    )
