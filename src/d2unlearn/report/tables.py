"""The rows of the report's before/after tables, with every number already written out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from d2unlearn.metrics.kept import KNOWS, knows
from d2unlearn.metrics.level_shift import LogitShape, level_shift
from d2unlearn.metrics.summary import LOGIT_METRICS, STAYED_METRIC
from d2unlearn.report.concerns import shape_of
from d2unlearn.report.notation import (
    ON_RETAINED,
    fixed,
    metric_interval,
    metric_value,
    metric_words,
    order_of,
    percent,
    readable,
)
from d2unlearn.schema import GUARDED_PREFIX, EvaluatedSet, Evaluation, Kind, MetricResult

ARROWS = {"lower": ("↓", "lower is better"), "higher": ("↑", "higher is better"), "neither": ("·", "neither is better")}


@dataclass(frozen=True)
class WrittenNumber:
    """One number of a table and its interval, as written; `interval` is empty when there is none."""

    value: str
    interval: str


@dataclass(frozen=True)
class ScaleMark:
    """A number drawn on a row's scale: value, low and high in percent of the scale's width."""

    series: str
    at: float
    low: float
    high: float


@dataclass(frozen=True)
class MetricRow:
    """One metric before and after. `guarded` is None where the metric has no guarded form."""

    label: str
    meaning: str
    unit: str
    arrow: str
    arrow_text: str
    before: WrittenNumber | None
    after: WrittenNumber | None
    guarded: WrittenNumber | None
    n: str
    unscored: str
    marks: tuple[ScaleMark, ...]


@dataclass(frozen=True)
class SetTable:
    """The table of one set; `guarded` says whether any of its rows has a guarded number.

    `unknown`: of how many answers the original itself does not know; empty where it knows all, or was not asked.
    """

    name: str
    kind: str
    n: int
    rows: tuple[MetricRow, ...]
    guarded: bool
    unknown: str = ""


def set_tables(before: Evaluation, after: Evaluation) -> tuple[SetTable, ...]:
    """One table per set: those of `after` in their order, then those that only `before` has."""
    earlier, later = {s.name: s for s in before.sets}, {s.name: s for s in after.sets}
    return tuple(set_table(earlier.get(name), later.get(name)) for name in dict.fromkeys([*later, *earlier]))


def set_table(before: EvaluatedSet | None, after: EvaluatedSet | None) -> SetTable:
    """The table of one set. Raises `ValueError` when both are None."""
    shown = after or before
    if shown is None:
        raise ValueError("a table needs the set before or after")
    rows = metric_rows(before.metrics if before else (), after.metrics if after else (), shown.kind)
    guarded = any(row.guarded for row in rows)
    return SetTable(readable(shown.name), shown.kind, len(shown.examples), rows, guarded, unknown_answers(before))


def unknown_answers(before: EvaluatedSet | None) -> str:
    """How many answers of the set the original itself does not know, in words; empty where there are none."""
    rights = [_right(example.scores) for example in (before.examples if before else ())]
    scored = [right for right in rights if not math.isnan(right)]
    unknown = sum(not knows(right) for right in scored)
    few = f"fewer than {KNOWS:.0%} of their tokens right"
    return f"The original itself does not know {unknown} of {len(scored)} answers ({few})." if unknown else ""


def _right(scores: Mapping[str, float]) -> float:
    """Share of the answer's tokens that are right; with the end token in evaluations from before it was left out."""
    return scores.get(STAYED_METRIC, scores.get("exact_memorization", math.nan))


@dataclass(frozen=True)
class LevelRow:
    """What the energy of one set consists of, before and after, as written; `reason`: why there is no share."""

    name: str
    kind: str
    numbers: tuple[tuple[str, str], ...]
    share: str
    mostly_level: bool
    reason: str


def level_rows(before: Evaluation, after: Evaluation) -> tuple[LevelRow, ...]:
    """Energy, mean logit, centred energy and entropy of every set where they were measured, and the share of level shift."""
    earlier = {s.name: s for s in before.sets}
    pairs = [(shape_of(earlier.get(s.name)), shape_of(s), s) for s in after.sets]
    return tuple(_level_row(*pair) for pair in pairs if not math.isnan(pair[1].energy))


def _level_row(before: LogitShape, after: LogitShape, evaluated: EvaluatedSet) -> LevelRow:
    shift = level_shift(before, after)
    numbers = [(shape.energy, *shape) for shape in (before, after)]
    written = tuple((fixed(old, 2), fixed(new, 2)) for old, new in zip(*numbers, strict=True))
    share = percent(shift.share)
    return LevelRow(readable(evaluated.name), evaluated.kind, written, share, shift.mostly_level, shift.reason)


def metric_rows(before: Iterable[MetricResult], after: Iterable[MetricResult], kind: Kind = "forget") -> tuple[MetricRow, ...]:
    """Known metrics in their order, then unknown ones as they come. Guarded numbers are those of `after`."""
    earlier, later = {m.name: m for m in before}, {m.name: m for m in after}
    names = dict.fromkeys(name.removeprefix(GUARDED_PREFIX) for name in [*later, *earlier])
    shown = [name for name in names if name not in LOGIT_METRICS]  # in a table of their own
    rows = [_row(name, earlier, later, kind) for name in sorted(shown, key=order_of)]
    return tuple(row for row in rows if row is not None)


def _row(name: str, before: Mapping[str, MetricResult], after: Mapping[str, MetricResult], kind: Kind) -> MetricRow | None:
    old, new, guarded = before.get(name), after.get(name), after.get(GUARDED_PREFIX + name)
    measured = [m for m in (new, guarded, old) if m is not None]
    if not measured:
        return None
    words = ON_RETAINED.get(name, metric_words(name)) if kind == "retain" else metric_words(name)
    arrow, arrow_text = ARROWS[next((m.better for m in measured if m.better != "neither"), "neither")]
    return MetricRow(
        words.label,
        words.meaning,
        measured[0].unit,
        arrow,
        arrow_text,
        _cell(old),
        _cell(new),
        _cell(guarded),
        _counts(*(None if m is None else m.n for m in (old, new or guarded))),
        _counts(*(None if m is None else m.unscored for m in (old, new or guarded))),
        _marks({"before": old, "after": new, "guarded": guarded}),
    )


def _cell(metric: MetricResult | None) -> WrittenNumber | None:
    return None if metric is None else WrittenNumber(metric_value(metric), metric_interval(metric))


def _counts(before: int | None, after: int | None) -> str:
    """One count where both sides agree or one is missing, else `before / after`."""
    counts = dict.fromkeys(count for count in (before, after) if count is not None)
    return " / ".join(f"{count:,}" for count in counts)


def _marks(series: Mapping[str, MetricResult | None]) -> tuple[ScaleMark, ...]:
    """Where each finite number lies on a scale that holds 0, 1 and every interval of the row."""
    bounds = {name: _bounds(m) for name, m in series.items() if m is not None and math.isfinite(m.value)}
    low = min([0.0, *(b[0] for b in bounds.values())])
    width = max([1.0, *(b[2] for b in bounds.values())]) - low
    return tuple(
        ScaleMark(name, *(round(100 * (number - low) / width, 2) for number in (at, left, right)))
        for name, (left, at, right) in bounds.items()
    )


def _bounds(metric: MetricResult) -> tuple[float, float, float]:
    """(low, value, high); the value itself where an end of the interval is not finite."""
    low, high = (end if math.isfinite(end) else metric.value for end in (metric.low, metric.high))
    return min(low, metric.value), metric.value, max(high, metric.value)
