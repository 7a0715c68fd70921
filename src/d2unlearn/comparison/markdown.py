"""Tables of a comparison as markdown, with intervals over seeds. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from d2unlearn.comparison.table import CONFIDENCE, FORGET_QUALITY, Cell, Column, Row, Section, SplitTable
from d2unlearn.comparison.words import who_wins

ARROWS = {"lower": "↓", "higher": "↑", "neither": ""}
DASH = "–"


def page_of(tables: Sequence[SplitTable], *, rule: str) -> str:
    """All splits, one under the other."""
    return "\n".join(part for table in tables for part in (f"## {table.split}\n", *parts_of(table, rule=rule)))


def parts_of(table: SplitTable, *, rule: str) -> Iterator[str]:
    """One split: what it was judged on, in words, the tables, and how the parameters were chosen."""
    sizes = ", ".join(f"{name.replace('_', ' ')} {n}" for name, n in table.sizes.items())
    yield f"Test questions: {sizes}. Measured on: {'; '.join(table.machines)}. {seeds_in_words(table.rows)}\n"
    yield who_wins(table)
    for section in table.sections:
        if not filled_columns(section, table.rows):
            continue
        yield f"### {section.title}\n"
        yield section_table(section, table.rows) + "\n"
    yield from _notes(table.rows)
    yield f"### How parameters were chosen\n\nBy the {rule}.\n"
    yield tuning_table(table) + "\n"


def seeds_in_words(rows: Sequence[Row]) -> str:
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


def filled_columns(section: Section, rows: Sequence[Row]) -> list[Column]:
    """The columns that somebody has a number for."""
    return [column for column in section.columns if any(_known(row.cells.get(column.key)) for row in rows)]


def section_table(section: Section, rows: Sequence[Row]) -> str:
    """One section as a markdown table."""
    columns = filled_columns(section, rows)
    head = ["", *(f"{column.label} {ARROWS[column.better]}".strip() for column in columns)]
    body = [[_name(row), *(cell_text(row.cells.get(column.key), column) for column in columns)] for row in rows]
    return markdown_table(head, body)


def cell_text(cell: Cell | None, column: Column) -> str:
    """`0.012 ± 0.004`, `0.002 (1.0e-05 to 0.300)` for a p-value; one seed: the mean alone; not measured: a dash."""
    if cell is None or not _known(cell):
        return DASH
    text = number(cell.value, column)
    if math.isnan(cell.low):
        return text
    if column.key == FORGET_QUALITY:
        return f"{text} ({number(cell.low, column)} to {number(cell.high, column)})"
    return f"{text} ± {number((cell.high - cell.low) / 2, column)}"


def number(value: float, column: Column) -> str:
    """A share in percent, seconds whole, p-values and what is very small in powers of ten, everything else to three digits."""
    if column.percent:
        return f"{value:.1%}"
    if column.key == "cost.seconds":
        return f"{value:.0f}"
    return f"{value:.1e}" if 0 < abs(value) < 5e-4 else f"{value:.3f}"


def tuning_table(table: SplitTable) -> str:
    """What was chosen; scores are of validation questions, which no other table shows."""
    head = ["", "trials", "of them worth nothing", "score on validation questions", "chosen"]
    body = [
        [each.contestant, str(each.trials), str(each.worthless), f"{each.score:.4f}", parameters_text(each.parameters)]
        for each in table.tunings
    ]
    return markdown_table(head, body)


def parameters_text(parameters: Mapping[str, float]) -> str:
    """`gamma 0.05, learning rate factor 1`."""
    return ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in parameters.items()) or DASH


def markdown_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """The first column on the left, all others on the right."""
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *body))


def _name(row: Row) -> str:
    return f"{row.contestant} ¹" if row.kind == "guard" and row.seeds else f"{row.contestant} ²" if row.note else row.contestant


def _notes(rows: Sequence[Row]) -> Iterator[str]:
    guards = [row for row in rows if row.kind == "guard" and row.seeds]
    if guards:
        yield "¹ A guard: what its weights know, and what relearning brings back, is the original's.\n"
    for row in rows:
        if row.note and not (row.kind == "guard" and row.seeds):
            yield f"² {row.contestant}: {row.note}.\n"


def _known(cell: Cell | None) -> bool:
    return cell is not None and not math.isnan(cell.value)
