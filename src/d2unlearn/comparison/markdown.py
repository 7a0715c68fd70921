"""Tables of a comparison as markdown, with intervals over seeds. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from d2unlearn.comparison.outcomes import LEVEL, OTHER_WORDS, MetricOutcome, Result
from d2unlearn.comparison.records import PROPOSED_METHOD
from d2unlearn.comparison.table import (
    CONFIDENCE,
    FORGET_QUALITY,
    EntryRow,
    SeedMean,
    SplitTable,
    TableColumn,
    TableSection,
    metric_label,
)
from d2unlearn.report.notation import NOT_SCORED, readable
from d2unlearn.report.tables import ARROWS

HOW_COMPARED = (
    f"Wins, ties and losses are {PROPOSED_METHOD}'s, on the same test questions. It is a tie unless chance explains the "
    f"difference in fewer than {LEVEL:.0%} of cases, with Holm's adjustment for all that are compared in a metric, not for the "
    "number of metrics. Chance is that of other groups of questions (an author's, a document's; where the data names none, "
    "each question by itself), and of other seeds where there are several (two crossed random effects); after relearning, of "
    "other seeds alone. What tuning chose, the original and the "
    "retain model are taken as they are. Told is the ROUGE-L recall of answers behind the gate or guard. Of forgotten "
    "questions this and extraction strength count from the retain model's up: less than a model that never knew is no "
    "advantage. Refusals are not compared with methods and guards that answer what they are to forget, in words of refusal or "
    "otherwise."
)

_REWORDED = (
    "Told in other words: the share of forgotten test questions, drawn once for all, that the raw weights give away in at "
    "least one of the wordings that judge; nothing is trained, tuned or chosen on these. Some of them give words away: wins "
    "and losses count from the retain model's share up."
)


def page_of(tables: Sequence[SplitTable], *, objective: str) -> str:
    """All splits, one under the other."""
    splits = [part for table in tables for part in (f"## {table.split}\n", *parts_of(table, objective=objective))]
    return "\n".join([f"{HOW_COMPARED}\n", *splits])


def parts_of(table: SplitTable, *, objective: str) -> Iterator[str]:
    """One split: what it was evaluated on, wins and losses, the tables, and how the parameters were chosen."""
    yield f"Test questions: {sizes_text(table)}. Measured on: {'; '.join(table.machines)}. {seeds_text(table.rows)}\n"
    if table.outcomes:
        yield f"### {PROPOSED_METHOD} against the others\n\n{compared_text(table)}\n\n{outcome_table(table.outcomes)}\n"
    for section in table.sections:
        if filled_columns(section, table.rows):
            yield f"### {section.title}\n\n{section_table(section, table.rows)}\n"
    if wording_note(table):
        yield f"{wording_note(table)}\n"
    yield from _notes(table.rows)
    tunings = ["", "trials", "of them worth nothing", "score on validation questions", "chosen"]
    yield f"### How parameters were chosen\n\nBy the {objective}.\n\n{markdown_table(tunings, tuning_texts(table))}\n"


def sizes_text(table: SplitTable) -> str:
    return ", ".join(f"{readable(name)} {n:,}" for name, n in table.sizes.items())


def seeds_text(rows: Sequence[EntryRow]) -> str:
    """What ± stands for."""
    most = max((len(row.seeds) for row in rows), default=0)
    if most < 2:
        return "One seed: no interval over seeds yet."
    spread = (
        f"Means over seeds ± half of a {CONFIDENCE:.0%} interval (Student's t, up to {most} seeds; of a share it may pass 0 or "
        "100%); without it: one seed."
    )
    tested = any(FORGET_QUALITY in row.cells for row in rows)
    return f"{spread} Forget quality, a p-value: geometric mean (interval)." if tested else spread


def wording_note(table: SplitTable) -> str:
    """What is told in other words, said where somebody was asked; else empty."""
    asked = any(key.startswith(f"{OTHER_WORDS}.") for row in table.rows for key in row.cells)
    return _REWORDED if asked else ""


def compared_text(table: SplitTable) -> str:
    """Who is compared."""
    names = dict.fromkeys(outcome.contestant for outcome in table.outcomes)
    without = f" (not in refusals: {', '.join(table.ungated)})" if table.ungated else ""
    return f"Compared: {', '.join(names)}{without}."


def outcome_counts(outcomes: Sequence[MetricOutcome]) -> dict[str, list[int]]:
    """Wins, ties and losses of each metric, by its label; of all together in the end."""
    counts: dict[str, Counter[Result]] = {}
    for outcome in outcomes:
        counts.setdefault(metric_label(outcome.respect), Counter())[outcome.result] += 1
    counts["all"] = Counter(outcome.result for outcome in outcomes)
    return {label: [counted["win"], counted["tie"], counted["loss"]] for label, counted in counts.items()}


def outcome_table(outcomes: Sequence[MetricOutcome]) -> str:
    """How often the proposed method wins, ties and loses, metric by metric."""
    body = [[label, *map(str, counts)] for label, counts in outcome_counts(outcomes).items()]
    return markdown_table(["", "wins", "ties", "losses"], body)


def filled_columns(section: TableSection, rows: Sequence[EntryRow]) -> list[TableColumn]:
    """The columns that somebody has a number for."""
    return [column for column in section.columns if any(_known(row.cells.get(column.key)) for row in rows)]


def section_table(section: TableSection, rows: Sequence[EntryRow]) -> str:
    """One section as a markdown table."""
    columns = filled_columns(section, rows)
    head = ["", *(f"{column.label} {ARROWS[column.better][0]}" for column in columns)]
    return markdown_table(head, [[_name(row), *cell_texts(row, columns)] for row in rows])


def cell_texts(row: EntryRow, columns: Sequence[TableColumn]) -> list[str]:
    return [cell_text(row.cells.get(column.key), column) for column in columns]


def cell_text(cell: SeedMean | None, column: TableColumn) -> str:
    """`0.012 ± 0.004`, `0.002 (1.0e-05 to 0.300)` for a p-value; one seed: the mean alone; not measured: a dash."""
    if cell is None or not _known(cell):
        return NOT_SCORED
    text = number_text(cell.value, column)
    if math.isnan(cell.low):
        return text
    if column.key == FORGET_QUALITY:
        return f"{text} ({number_text(cell.low, column)} to {number_text(cell.high, column)})"
    return f"{text} ± {number_text((cell.high - cell.low) / 2, column)}"


def number_text(value: float, column: TableColumn) -> str:
    """A share in percent, seconds whole, p-values and what is very small in powers of ten, everything else to three digits."""
    if column.percent:
        return f"{value:.1%}"
    if column.key == "cost.seconds":
        return f"{value:.0f}"
    return f"{value:.1e}" if 0 < abs(value) < 5e-4 else f"{value:.3f}"


def tuning_texts(table: SplitTable) -> list[list[str]]:
    """Of each entry that was tuned: name, trials, failed trials, the chosen one's score on validation questions, its values."""
    return [
        [row.contestant, str(row.trials), str(row.worthless), f"{row.score:.4f}", parameters_text(row.parameters)]
        for row in table.tunings
    ]


def parameters_text(parameters: Mapping[str, float]) -> str:
    """`gamma 0.05, learning rate factor 1`."""
    return ", ".join(f"{readable(name)} {value:g}" for name, value in parameters.items()) or NOT_SCORED


def markdown_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """The first column on the left, all others on the right."""
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *body))


def _name(row: EntryRow) -> str:
    if row.kind == "guard" and row.seeds:
        return f"{row.contestant} ¹"
    return f"{row.contestant} ²" if row.note else row.contestant


def _notes(rows: Sequence[EntryRow]) -> Iterator[str]:
    if any(_name(row).endswith("¹") for row in rows):
        yield "¹ A guard: what its weights know, and what relearning brings back, is the original's.\n"
    for row in rows:
        if _name(row).endswith("²"):
            yield f"² {row.contestant}: {row.note}.\n"


def _known(cell: SeedMean | None) -> bool:
    return cell is not None and not math.isnan(cell.value)
