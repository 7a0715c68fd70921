"""What the page of an audit draws of an attack: its settings, put together by their shape. Pure: records in, places out.

Settings with the same keys, one of which runs through at least three numbers, are curves over that number: a panel for each
choice of their words, a line for each choice of their other numbers. All other settings are rows of marks on one scale; of
settings that name a family, the worst stands for it. No attack is known by its name here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from d2unlearn.attacks.reading import Measure, Setting
from d2unlearn.audit.records import AttackResult, SettingResult
from d2unlearn.audit.summary import MEASURE_WORDS, in_words
from d2unlearn.audit.verdict import ClaimMargins
from d2unlearn.report.notation import fixed, readable
from d2unlearn.schema import MetricResult

TOLD_APART: Literal["told_apart"] = "told_apart"
"""What a picture shows that is no measure of rows: how well scores tell forgotten rows from a control's (AUC)."""
CHANCE: Mapping[str, float] = {"picked": 0.5, TOLD_APART: 0.5}
"""What guessing gives: one of two answers, one of two sides."""
MARKED = {
    "artifact": "artifact",
    "guarded": "artifact, through its gate",
    "oracle": "model that never knew",
    "never_seen": "facts that the artifact never saw",
    "original": "original",
}
"""What is drawn of a setting, by the name of its mark, in the order of a legend."""
FAMILY = "family"
ROW_WORDS = {"forget": "forgotten rows", "retain": "retained rows", "near": "near neighbours", "far": "requests far from both"}
LEAST_POINTS = 3
"""A number's values from which settings are a curve."""
MOST_ROWS = 14
"""Rows of marks in a picture; the table has all."""
_TOPS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class DrawnSetting:
    """A setting with all that is drawn of it. limit: how much the artifact may show; NaN where nothing is compared.

    decides: whether its numbers decide what is said of the attack.
    """

    setting: Mapping[str, Setting]
    values: Mapping[str, MetricResult]
    limit: float
    decides: bool

    @property
    def worst(self) -> float:
        """The most that the artifact shows, raw or through its gate; minus infinity where nothing was scored."""
        shown = [self.values[name].value for name in ("artifact", "guarded") if name in self.values]
        return max((value for value in shown if not math.isnan(value)), default=-math.inf)


class Mark(NamedTuple):
    """A mean on a scale, with its interval: percent of the scale's width."""

    series: str
    at: float
    low: float
    high: float


@dataclass(frozen=True)
class MarkRow:
    """One setting as a row: its name, marks, the limit's place, and the numbers as written; `others`: what is called how."""

    label: str
    note: str
    marks: tuple[Mark, ...]
    limit: float | None
    value: str
    others: tuple[tuple[str, str], ...]
    decides: bool


@dataclass(frozen=True)
class Line:
    """Settings along a number: (that number, setting), rising. bold: the panel's worst."""

    points: tuple[tuple[float, DrawnSetting], ...]
    bold: bool


@dataclass(frozen=True)
class CurvePanel:
    """Curves of one choice of words. `along`: the number that they run through."""

    title: str
    along: str
    lines: tuple[Line, ...]
    chance: float | None = None


@dataclass(frozen=True)
class Picture:
    """All that one measure shows of one set of rows. `scale`: what is drawn on; `left`: settings that only the table has.

    judged: whether its numbers can decide a claim. The measure may be `TOLD_APART` too.
    """

    measure: Measure | Literal["told_apart"]
    rows_of: str
    judged: bool
    series: tuple[str, ...]
    scale: tuple[float, float]
    panels: tuple[CurvePanel, ...]
    rows: tuple[MarkRow, ...]
    left: int

    @property
    def faint(self) -> bool:
        """Whether any panel has lines beside its worst."""
        return any(len(panel.lines) > 1 for panel in self.panels)

    @property
    def ticks(self) -> tuple[str, ...]:
        """The scale's ends and middle; none where every row has its own."""
        low, high = self.scale
        return (_short(low), _short((low + high) / 2), _short(high)) if self.shares else ()

    @property
    def shares(self) -> bool:
        """Whether the numbers are shares; where they are not, every row has a scale of its own."""
        return self.measure != "score"

    @property
    def chance(self) -> float | None:
        """What guessing gives; None where that is nothing, or unknown."""
        return CHANCE.get(self.measure)

    @property
    def chance_at(self) -> float:
        """Its place on the scale."""
        return _place(self.chance or 0.0, self.scale)

    @property
    def title(self) -> str:
        """What is measured, of what."""
        if self.measure == TOLD_APART:
            return "How well scores tell forgotten rows from what was never known (AUC)"
        return measure_title(self.measure, self.rows_of)


def pictures(results: Sequence[AttackResult], margins: ClaimMargins) -> list[Picture]:
    """One attack's pictures, those that judge first: of each measure and set of rows one that judges and one that does not.

    Settings in which nothing was scored, and pictures of these alone, are left out.
    """
    drawn: dict[tuple[Measure, str, bool], dict[tuple[tuple[str, Setting], ...], DrawnSetting]] = {}
    for result in results:
        for index, one in enumerate(result.settings):
            settings = drawn.setdefault((one.measure, one.rows, judges(result.claim, one.measure, margins)), {})
            key = tuple(one.setting.items())
            settings[key] = _with(settings.get(key), result, one, index, margins)
    scored = {
        key: [each for each in settings.values() if any(map(_scored, each.values.values()))] for key, settings in drawn.items()
    }
    made = [_picture(*key, settings, len(drawn[key]) - len(settings)) for key, settings in scored.items() if settings]
    apart = [one for result in results for one in result.settings if one.told_apart]
    if apart:
        aucs = [DrawnSetting(one.setting, dict(one.told_apart), math.nan, False) for one in apart]
        made.insert(0, _picture(TOLD_APART, apart[0].rows, False, aucs, 0))
    return sorted(made, key=lambda picture: not picture.judged)


def judges(claim: str, measure: Measure, margins: ClaimMargins) -> bool:
    """Whether a measure decides a claim: refusals only where none is wanted."""
    return bool(claim) and margins.of(measure) is not None and (measure != "refused" or claim == "nothing_else")


def measure_title(measure: Measure, rows: str) -> str:
    """A measure and its rows, as a heading."""
    words = MEASURE_WORDS[measure]
    return f"{words[:1].upper()}{words[1:]}, {ROW_WORDS.get(rows, readable(rows))}"


def _with(
    before: DrawnSetting | None, result: AttackResult, one: SettingResult, index: int, margins: ClaimMargins
) -> DrawnSetting:
    """A setting with what one result has of it: raw or guarded, and the models beside it."""
    own = "guarded" if result.guarded else "artifact"
    values = {own if name == "artifact" else name: value for name, value in one.values.items()}
    margin = margins.of(one.measure) if judges(result.claim, one.measure, margins) else None
    limit = math.nan if margin is None else one.values["artifact"].value - one.difference + margin
    decides = result.deciding == index
    if before is None:
        return DrawnSetting(one.setting, values, limit, decides)
    limit = before.limit if math.isnan(limit) else limit
    return DrawnSetting(one.setting, {**before.values, **values}, limit, before.decides or decides)


def _picture(
    measure: Measure | Literal["told_apart"], rows: str, judged: bool, settings: Sequence[DrawnSetting], left: int
) -> Picture:
    panels, others = _curves(settings)
    shown, scale = _representative(others), _scale(settings, CHANCE.get(measure, 0.0))
    series = tuple(name for name in MARKED if any(name in each.values for each in settings))
    return Picture(
        measure,
        rows,
        judged,
        series,
        scale,
        tuple(replace(panel, chance=CHANCE.get(measure)) for panel in panels),
        tuple(_row(each, _scale([each]) if measure == "score" else scale) for each in shown),
        len(others) - len(shown) + left,
    )


# -- curves --------------------------------------------------------------------------------------------------------------


def _curves(settings: Sequence[DrawnSetting]) -> tuple[list[CurvePanel], list[DrawnSetting]]:
    """Panels of the settings that are curves, and the other settings."""
    alike: dict[frozenset[str], list[DrawnSetting]] = {}
    for each in settings:
        alike.setdefault(frozenset(each.setting), []).append(each)
    runs = {keys: along for keys, group in alike.items() if (along := _runs_along(group, alike)) is not None}
    panels: list[CurvePanel] = []
    others = [each for keys, group in alike.items() if keys not in runs for each in group]
    for keys, along in runs.items():
        starts = [each for each in others if set(each.setting) == {along} and keys != {along}]
        others = [each for each in others if each not in starts]
        panels += _panels(alike[keys], along, starts)
    return panels, others


def _runs_along(settings: Sequence[DrawnSetting], alike: Mapping[frozenset[str], Sequence[DrawnSetting]]) -> str | None:
    """The number with the most values, the last named of several; None where none has enough.

    alike: all settings by their keys: those that have this number alone are values of it too.
    """
    values = {key: {each.setting[key] for each in (*settings, *alike.get(frozenset([key]), ()))} for key in settings[0].setting}
    numbers = {key: len(found) for key, found in values.items() if not any(isinstance(value, str) for value in found)}
    longest = max(reversed(numbers), key=lambda key: numbers[key], default=None)
    return longest if longest is not None and numbers[longest] >= LEAST_POINTS else None


def _panels(settings: Sequence[DrawnSetting], along: str, starts: Sequence[DrawnSetting]) -> list[CurvePanel]:
    """starts: settings that all lines begin with."""
    chosen: dict[str, dict[tuple[Setting, ...], list[DrawnSetting]]] = {}
    for each in settings:
        words = ", ".join(readable(value) for value in each.setting.values() if isinstance(value, str))
        numbers = tuple(value for key, value in each.setting.items() if key != along and not isinstance(value, str))
        chosen.setdefault(words, {}).setdefault(numbers, []).append(each)
    panels = []
    for words, lines in chosen.items():
        worst = max(lines.values(), key=lambda line: max((each.decides, each.worst) for each in line))
        drawn = tuple(Line(_rising([*starts, *line], along), line is worst) for line in lines.values())
        panels.append(CurvePanel(words, along, drawn))
    return panels


def _rising(line: Iterable[DrawnSetting], along: str) -> tuple[tuple[float, DrawnSetting], ...]:
    return tuple(sorted(((float(each.setting[along]), each) for each in line), key=lambda point: point[0]))


# -- rows of marks -------------------------------------------------------------------------------------------------------


def _representative(settings: Sequence[DrawnSetting]) -> list[DrawnSetting]:
    """The worst of every family, and of the rest at most so many that the picture can be read."""
    families: dict[object, DrawnSetting] = {}
    for number, each in enumerate(settings):
        key = each.setting.get(FAMILY, number)
        if key not in families or (each.decides, each.worst) > (families[key].decides, families[key].worst):
            families[key] = each
    shown = list(families.values())
    if len(shown) > MOST_ROWS or any(FAMILY in each.setting for each in shown):
        shown.sort(key=lambda each: (each.decides, each.worst), reverse=True)
    return shown[:MOST_ROWS]


def _row(each: DrawnSetting, scale: tuple[float, float]) -> MarkRow:
    whole = readable(in_words(each.setting)) or "as it is"
    family = each.setting.get(FAMILY)
    rest = in_words({key: value for key, value in each.setting.items() if key != FAMILY})
    own = next(name for name in ("artifact", "guarded", "oracle", "never_seen") if name in each.values)
    beside = {"guarded": "gate", "oracle": "control", "never_seen": "control"}
    return MarkRow(
        whole if family is None else readable(str(family)),
        "" if family is None or rest == family else readable(rest),
        tuple(_mark(name, each.values[name], scale) for name in reversed(MARKED) if _scored(each.values.get(name))),
        None if math.isnan(each.limit) else _place(each.limit, scale),
        fixed(each.values[own].value),
        tuple((words, fixed(each.values[name].value)) for name, words in beside.items() if name in each.values and name != own),
        each.decides,
    )


def _mark(series: str, metric: MetricResult, scale: tuple[float, float]) -> Mark:
    low, high = (metric.value if math.isnan(end) else end for end in (metric.low, metric.high))
    return Mark(series, _place(metric.value, scale), _place(low, scale), _place(high, scale))


def _scored(metric: MetricResult | None) -> bool:
    return metric is not None and not math.isnan(metric.value)


def _place(value: float, scale: tuple[float, float]) -> float:
    low, high = scale
    return round(100 * min(1.0, max(0.0, (value - low) / (high - low))), 2)


def _scale(settings: Sequence[DrawnSetting], least: float = 0.0) -> tuple[float, float]:
    """From 0 to a round share, at least so much, for what is one; from the lowest to the highest number for what is none."""
    metrics = [metric for each in settings for metric in each.values.values()]
    ends = [end for metric in metrics for end in (metric.low, metric.value, metric.high) if math.isfinite(end)]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    if low >= 0 and high <= 1:
        return 0.0, next(top for top in _TOPS if max(high, least) <= top)
    width = high - low or 1.0
    return low - 0.04 * width, high + 0.04 * width


def _short(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")
