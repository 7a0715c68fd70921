"""The page: what the summary, the tables, the samples and the figures say, put into one HTML document.

The document loads nothing: styles and figures are inside it, there is no script, and its content security policy says so.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from d2unlearn.redaction import is_redacted
from d2unlearn.report import figures, notation, samples, summary, tables
from d2unlearn.report.audited import AuditSummary
from d2unlearn.report.concerns import BeforeAfter
from d2unlearn.report.path import path_drawing
from d2unlearn.schema import Evaluation, GateSummary, Interval, Verdict

LEVEL_WORDS = {"bad": "Problem", "warn": "Caution", "note": "Note"}
VERDICT_STATES: Mapping[Verdict, str] = {"holds": "good", "does not hold": "bad", "not shown": "unknown"}
SIGNS = {"good": "✓", "warn": "!", "bad": "✕", "unknown": "?"}
STATE_WORDS = {"good": "good", "warn": "with reservations", "bad": "a problem", "unknown": "not known"}
FALLBACK_SECTION = "run"


@dataclass(frozen=True)
class RunSection:
    """A part of `run`: names with their values, or a table where it was a list of mappings."""

    title: str
    entries: tuple[tuple[str, str], ...] = ()
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


def build(
    before: Evaluation,
    after: Evaluation,
    gate: GateSummary | None,
    run: Mapping[str, object],
    audit: AuditSummary | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> str:
    """The report as one HTML document, to be written to a file as it is.

    `before` and `after` are evaluations of the original and of the unlearned model, `gate` what was calibrated, and
    `run` what was done: a mapping (of mappings, of lists of mappings) of plain values, shown in its order. `run["seed"]`,
    when it is a whole number, also chooses the random samples. `audit`: what attacks showed; `recipe`: what
    the manifest holds of a measured recipe. The same input gives the same
    text; everything that comes from outside is escaped. Numbers that were not scored are shown as a dash.
    """
    seed, hidden = run.get("seed"), is_redacted(before) or is_redacted(after)
    return template("report", "page.html.j2").render(
        before=before,
        after=after,
        gate=gate,
        gate_entries=gate_entries(gate),
        audit=audit,
        summary=summary.summarize(BeforeAfter(before, after, gate, () if audit is None else audit.claims)),
        recipe=recipe,
        path=None if recipe is None else path_drawing(recipe),
        panels=figures.energy_panels(before, after),
        ridges=figures.gate_ridges(after, gate),
        score_name=score_name(after, gate),
        tables=tables.set_tables(before, after),
        levels=tables.level_rows(before, after),
        separation=tables.metric_rows(before.separation, after.separation),
        samples=() if hidden else samples.choose_samples(before, after, abs(seed) if isinstance(seed, int) else 0),
        texts_left_out=hidden,
        sections=run_sections(run),
        settings=compare_settings(before.settings, after.settings),
    )


def score_name(after: Evaluation, gate: GateSummary | None) -> str:
    """The gate's score as it is called, or `gate score`."""
    return (gate.score_name if gate is not None else after.score_name) or "gate score"


def gate_entries(gate: GateSummary | None) -> tuple[tuple[str, str], ...]:
    """Names and values of the gate's calibration."""
    if gate is None:
        return ()
    kind = "marginal" if gate.confidence is None else f"with {notation.stated(gate.confidence)} confidence"
    return (
        ("score", gate.score_name),
        ("threshold", plain(gate.threshold)),
        ("largest share of false refusals", f"{notation.stated(gate.max_false_refusal)} ({kind})"),
        ("calibration prompts", f"{gate.n_calibration:,}"),
        ("false refusals measured", interval_text(gate.false_refusal)),
        ("misses measured", interval_text(gate.miss_rate)),
    )


def interval_text(interval: Interval | None) -> str:
    """`0.4% (0.1% to 1.1%, n = 500)`; a dash when it was not measured."""
    if interval is None or math.isnan(interval.value):
        return notation.NOT_SCORED
    low, high = notation.percent(interval.low), notation.percent(interval.high)
    return f"{notation.percent(interval.value)} ({low} to {high}, n = {interval.n:,})"


def run_sections(run: Mapping[str, object]) -> tuple[RunSection, ...]:
    """The plain values of `run` as one section, then one for each mapping or list of mappings in it."""
    scalars = {key: value for key, value in run.items() if not _nested(value)}
    sections = [RunSection(FALLBACK_SECTION, entries=_entries(scalars))] if scalars else []
    for key, value in run.items():
        if isinstance(value, Mapping):
            sections.append(RunSection(notation.readable(key), entries=_entries(value)))
        elif _nested(value) and isinstance(value, Sequence):
            sections.append(_listing(key, [row for row in value if isinstance(row, Mapping)]))
    return tuple(sections)


def _listing(key: str, mappings: Sequence[Mapping[str, object]]) -> RunSection:
    """A list of mappings as a table with a column for every name."""
    columns = tuple(dict.fromkeys(column for row in mappings for column in row))
    rows = tuple(tuple(plain(row.get(column)) for column in columns) for row in mappings)
    return RunSection(notation.readable(key), columns=tuple(map(notation.readable, columns)), rows=rows)


def compare_settings(before: Mapping[str, object], after: Mapping[str, object]) -> tuple[tuple[str, str, str, bool], ...]:
    """(name, before, after, differs) of every setting of either evaluation."""
    names = dict.fromkeys([*before, *after])
    rows = [(name, plain(before.get(name)), plain(after.get(name))) for name in names]
    return tuple((notation.readable(name), old, new, old != new) for name, old, new in rows)


def plain(value: object) -> str:
    """A value as a person writes it: counts with separators, short floats, lists with commas."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return notation.NOT_SCORED
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return notation.NOT_SCORED if math.isnan(value) else re.sub("^-", "−", f"{value:.5g}")
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {plain(item)}" for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return ", ".join(plain(item) for item in value)
    return str(value)


def _nested(value: object) -> bool:
    """Whether a value of `run` has a section of its own: a mapping, or a list of mappings."""
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return len(value) > 0 and all(isinstance(row, Mapping) for row in value)
    return isinstance(value, Mapping)


def _entries(values: Mapping[str, object]) -> tuple[tuple[str, str], ...]:
    """Names and written values; a mapping within becomes one entry per key."""
    entries: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            entries += [(f"{notation.readable(str(key))}: {name}", text) for name, text in _entries(value)]
        else:
            entries.append((notation.readable(str(key)), plain(value)))
    return tuple(entries)


@cache
def template(package: str, name: str) -> Template:
    """One of this package's templates, with the report's filters; what is inserted is escaped."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("d2unlearn", package), PackageLoader("d2unlearn", "report")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        svg=Markup,
        readable=notation.readable,
        folder_name=notation.folder_name,
        fixed=notation.fixed,
        shorten=notation.shorten,
        percent=notation.percent,
    )
    environment.globals.update(level_words=LEVEL_WORDS, state_words=STATE_WORDS, signs=SIGNS, verdict_states=VERDICT_STATES)
    return environment.get_template(name)
