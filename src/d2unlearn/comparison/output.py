"""What a comparison leaves to read: tables and pages with the trade-off. All of it is made from files, anew each time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from d2unlearn.comparison.entries import ungated
from d2unlearn.comparison.markdown import page_of
from d2unlearn.comparison.objective import RULE
from d2unlearn.comparison.page import write_pages
from d2unlearn.comparison.plan import Comparison, runs_of
from d2unlearn.comparison.records import Judged, Tuned
from d2unlearn.comparison.store import Store, read_result, written
from d2unlearn.comparison.table import SplitTable, split_table
from d2unlearn.comparison.words import in_words
from d2unlearn.runtime import atomic_write
from d2unlearn.serialization import record_to_json


def write_output(comparison: Comparison, store: Store) -> Iterator[str]:
    """Write table.md, table.json and the pages into the output folder; lines for a person."""
    tables = tables_of(comparison, store.results)
    if not tables:
        yield "no run is done yet"
        return
    markdown, numbers = store.output / "table.md", store.output / "table.json"
    atomic_write(markdown, "# Comparison\n\n" + page_of(tables, rule=RULE))
    atomic_write(numbers, written({"splits": [record_to_json(table, "table") for table in tables]}) + "\n")
    for table in tables:
        for line in in_words(table.outcomes):
            yield f"{table.split}: {line.removeprefix('- ')}"
    yield str(markdown)
    yield str(numbers)
    yield str(write_pages(tables, store.output / "answers", store.output / "pages"))


def tables_of(comparison: Comparison, results: Path) -> list[SplitTable]:
    """The tables of all splits of which something is judged, from the kept results of this comparison's own runs."""
    judged, tuned = read_results(results)
    own = {run.key for run in runs_of(comparison, {each.key: each.best.score for each in tuned if each.kind == "method"})}
    judged, tuned = [each for each in judged if each.key in own], [each for each in tuned if each.key in own]
    there = [split.name for split in comparison.splits if any(run.split == split.name for run in judged)]
    order, left_out = [*comparison.methods, *comparison.guards], comparison.settings.left_out
    return [split_table(name, judged, tuned, left_out if name == there[0] else {}, order, ungated()) for name in there]


def read_results(results: Path) -> tuple[list[Judged], list[Tuned]]:
    """Every kept record. Raises `DataError` for a file that holds something else."""
    judged = [read_result(path, Judged) for path in sorted(results.glob("*/*/seed-*.json"))]
    return judged, [read_result(path, Tuned) for path in sorted(results.glob("*/*/tune.json"))]
