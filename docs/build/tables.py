"""What the made pages share: where things are, Markdown tables, and how a number is written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).resolve().parents[2]


def table(head: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> str:
    """A Markdown table; `align` has one letter a column, l or r."""
    rule = ["---:" if side == "r" else "---" for side in align]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows)) + "\n"


def spread(values: Sequence[float], percent: bool = False, digits: int = 3) -> str:
    """Mean with the lowest and highest in brackets; a dash for what was not measured."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return "–"
    middle, low, high = (number(f(known), percent, digits) for f in (mean, min, max))
    return middle if min(known) == max(known) else f"{middle} [{low}, {high}]"


def number(value: float, percent: bool = False, digits: int = 3) -> str:
    return f"{value:.2%}" if percent else f"{value:.{digits}f}"


def minus(text: str) -> str:
    """With the sign that mathematics has for minus."""
    return text.replace("-", "−")
