"""What a comparison leaves to read: tables and pages with the trade-off. All of it is made from files, anew each time."""

from __future__ import annotations

from collections.abc import Iterator

from d2unlearn.comparison.entries import refuses_in_text
from d2unlearn.comparison.markdown import page_of
from d2unlearn.comparison.objective import OBJECTIVE
from d2unlearn.comparison.page import write_pages
from d2unlearn.comparison.plan import Comparison, Run, runs_of
from d2unlearn.comparison.store import Store, read_results
from d2unlearn.comparison.table import SplitTable, split_table
from d2unlearn.comparison.win_tie_loss import counts_text
from d2unlearn.methods import METHODS
from d2unlearn.runtime import atomic_write, write_json
from d2unlearn.serialization import record_to_json


def write_output(comparison: Comparison, store: Store) -> Iterator[str]:
    """Write table.md, table.json and the pages into the output folder; lines for a person."""
    tables = tables_of(comparison, store)
    if not tables:
        yield "no run is done yet"
        return
    markdown, numbers = store.output / "table.md", store.output / "table.json"
    atomic_write(markdown, "# Comparison\n\n" + page_of(tables, objective=OBJECTIVE))
    write_json(numbers, {"splits": [record_to_json(table, "table") for table in tables]})
    yield from (counts_text(table) for table in tables if table.outcomes)
    yield str(markdown)
    yield str(numbers)
    yield str(write_pages(tables, store.output / "answers", store.output / "pages"))


def tables_of(comparison: Comparison, store: Store) -> list[SplitTable]:
    """The tables of all splits of which something is evaluated, from the kept results of this comparison's own runs."""
    own = {run.key for run in known_runs(comparison, store)}
    runs, tunings = read_results(store.results)
    runs, tunings = [run for run in runs if run.key in own], [tuning for tuning in tunings if tuning.key in own]
    there = [split.name for split in comparison.splits if any(run.split == split.name for run in runs)]
    refusing = refuses_in_text(comparison)
    order, left_out = [*comparison.methods, *comparison.guards], comparison.settings.left_out
    return [split_table(name, runs, tunings, left_out if name == there[0] else {}, order, refusing) for name in there]


def known_runs(comparison: Comparison, store: Store) -> list[Run]:
    """All runs that are known by now, looked up anew each time: other processes may be at them too."""
    return runs_of(comparison, tuning_scores(comparison, store))


def tuning_scores(comparison: Comparison, store: Store) -> dict[str, float]:
    """The best score of every method's tuning that is done, by key."""
    methods = dict.fromkeys([*METHODS, *comparison.named("method")])
    runs = [Run(split.name, name, "method", None) for split in comparison.splits for name in methods]
    return {run.key: store.tuning(run).best.score for run in runs if store.is_done(run)}
