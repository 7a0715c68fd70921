"""From the records of runs to tables: means over seeds with intervals. Pure.

Every number is of test questions. What tuning measured on validation questions stays with the tunings (`TuningRow`).
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from d2unlearn.comparison.outcomes import REFUSED, TOLD, Outcome, outcomes_of
from d2unlearn.comparison.records import ORACLE, ORIGINAL, PROPOSED_METHOD, ContestantKind, Judged, JudgedSet, Tuned
from d2unlearn.schema import Better

CONFIDENCE = 0.95
"""Of the intervals over seeds."""
WORTHLESS = 1e-3
"""The score of a trial, of 1, below which nothing was forgotten or nothing is left."""
UTILITY = "suite.model_utility"
FORGET_QUALITY = "suite.forget_quality"
"""A p-value: it spans orders of magnitude, so its mean over seeds is that of logarithms."""


@dataclass(frozen=True)
class Column:
    """A number that is shown of every contestant. `key`: of `numbers_of`."""

    key: str
    label: str
    better: Better
    percent: bool = False


@dataclass(frozen=True)
class Cell:
    """Mean over `n` seeds, and its 95% interval (Student's t); NaN where there are not two. Geometric for a p-value."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Row:
    """A contestant. `note`: why numbers are missing, or whose they are."""

    contestant: str
    kind: ContestantKind
    seeds: tuple[int, ...]
    cells: Mapping[str, Cell]
    note: str = ""


@dataclass(frozen=True)
class Section:
    """Columns that belong together."""

    title: str
    columns: tuple[Column, ...]


@dataclass(frozen=True)
class TuningRow:
    """What tuning chose, and how the chosen trial scored on validation questions. `worthless`: trials that scored next to 0."""

    contestant: str
    trials: int
    score: float
    parameters: Mapping[str, float]
    worthless: int


@dataclass(frozen=True)
class SplitTable:
    """Everything about one split. `sizes`: test questions by set; `ungated`: contestants that answer what others refuse."""

    split: str
    sizes: Mapping[str, int]
    sections: tuple[Section, ...]
    rows: tuple[Row, ...]
    outcomes: tuple[Outcome, ...]
    tunings: tuple[TuningRow, ...]
    machines: tuple[str, ...]
    ungated: tuple[str, ...]


def split_table(
    split: str,
    judged: Sequence[Judged],
    tuned: Sequence[Tuned],
    left_out: Mapping[str, str],
    order: Sequence[str] = (),
    ungated: Collection[str] = (),
) -> SplitTable:
    """The table of one split from its runs.

    left_out: contestants without runs, and why; order: of the contestants; ungated: those that refuse in words, or not at all.
    """
    runs = [each for each in judged if each.split == split]
    rank = defaultdict(lambda: len(order) + 2, {name: place for place, name in enumerate([ORIGINAL, ORACLE, *order])})
    names = sorted(dict.fromkeys(run.contestant for run in runs), key=rank.__getitem__)
    tunings = sorted((each for each in tuned if each.split == split), key=lambda each: rank[each.contestant])
    base = _mean_cost([run for run in runs if run.contestant == PROPOSED_METHOD])
    original = next((numbers_of(run, base) for run in runs if run.contestant == ORIGINAL), {})
    rows = [_row([run for run in runs if run.contestant == name], original, base) for name in names]
    rows += [Row(name, "guard", (), {}, reason) for name, reason in left_out.items()]
    sets = {each.name: each for run in runs for each in run.sets}
    return SplitTable(
        split,
        {name: each.n for name, each in sets.items()},
        sections_of(sets, any(run.suite for run in runs)),
        tuple(rows),
        tuple(outcomes_of(runs, names, ungated=ungated)),
        tuple(_tuning(each) for each in tunings),
        tuple(sorted({run.machine for run in runs})),
        tuple(name for name in names if name in ungated),
    )


def everybody_in(tables: Sequence[SplitTable]) -> list[str]:
    """Everybody, in the order of the tables."""
    return list(dict.fromkeys(row.contestant for table in tables for row in table.rows))


def numbers_of(run: Judged, base: tuple[float, float] = (math.nan, math.nan)) -> dict[str, float]:
    """Every number of a run by its key. base: (time, memory) that cost is a ratio to."""
    found = {f"{each.name}.{metric.name}": metric.value for each in run.sets for metric in each.metrics}
    found |= {f"suite.{metric.name}": metric.value for metric in run.suite}
    found |= {f"separation.{metric.name}": metric.value for metric in run.separation}
    for comeback in run.comebacks:
        found |= {f"comeback.{comeback.choice}.{steps}": each.value for steps, each in comeback.probability.items()}
    time, memory = _mean_cost([run])
    return found | {"cost.seconds": time, "cost.time": _ratio(time, base[0]), "cost.memory": _ratio(memory, base[1])}


def is_guarded(key: str) -> bool:
    """Whether a number depends on the guard, and not on the weights alone."""
    return ".guarded_" in key or key.startswith("separation.") or "_gate_" in key


def p_interval(values: Sequence[float]) -> Cell:
    """Geometric mean of p-values over seeds and its interval, which ends at 1; NaN values are left out."""
    found = seed_interval([math.log(max(value, sys.float_info.min)) for value in values])
    mean, low, high = (math.exp(min(each, 0.0)) for each in (found.value, found.low, found.high))
    return Cell(mean, low, high, found.n)


def seed_interval(values: Sequence[float]) -> Cell:
    """Mean over seeds and its interval; NaN values are left out."""
    known = np.array([value for value in values if not math.isnan(value)])
    if not len(known):
        return Cell(math.nan, math.nan, math.nan, 0)
    mean = float(known.mean())
    if len(known) == 1:
        return Cell(mean, math.nan, math.nan, 1)
    half = float(student.ppf((1 + CONFIDENCE) / 2, len(known) - 1) * known.std(ddof=1) / math.sqrt(len(known)))
    return Cell(mean, mean - half, mean + half, len(known))


def sections_of(sets: Mapping[str, JudgedSet], suite: bool) -> tuple[Section, ...]:
    """What is shown, from the sets that there are."""
    forget, retain = (_named(sets, kind) for kind in ("forget", "retain"))
    others = [name for name in forget if name != "forget"]
    raw = [
        Column("forget.extraction_strength", "forget: extraction strength", "lower"),
        Column("forget.answer_probability", "forget: answer probability", "lower"),
        *(Column(f"{name}.extraction_strength", f"{_words(name)}: extraction strength", "lower") for name in others),
        *(Column(f"{name}.leak_rate", f"{_words(name)}: leaks", "lower", True) for name in others),
        Column("forget.token_entropy", "forget: token entropy", "higher"),
        *(Column(f"{name}.extraction_strength", f"{_words(name)}: extraction strength", "higher") for name in retain),
    ]
    own = [
        Column(FORGET_QUALITY, "forget quality", "higher"),
        Column(UTILITY, "model utility", "higher"),
        Column("suite.forget_truth_ratio", "forget truth ratio", "higher"),
    ]
    guarded = [
        *(Column(f"{name}.{REFUSED}", f"gate refuses: {_words(name)}", "higher", True) for name in forget),
        *(Column(f"{name}.guarded_leak_rate", f"leaks: {_words(name)}", "lower", True) for name in forget),
        *(Column(f"{name}.{REFUSED}", f"gate refuses: {_words(name)}", "lower", True) for name in retain),
        Column(f"forget.{TOLD}", "told: forget", "lower"),
        Column(f"retain.{TOLD}", "told: retain", "higher"),
        Column("separation.auroc_gate_forget_vs_retain", "AUROC of the guard's score", "higher"),
    ]
    back = [Column("comeback.first.0", "at rest", "lower")]
    back += [
        Column(f"comeback.{choice}.{steps}", f"{words}, {steps} steps", "lower")
        for choice, words in (("first", "whole authors"), ("spread", "rows of all authors"))
        for steps in (5, 20)
    ]
    cost = [
        Column("cost.seconds", "seconds of training", "lower"),
        Column("cost.time", f"time / {PROPOSED_METHOD}", "lower"),
        Column("cost.memory", f"memory / {PROPOSED_METHOD}", "lower"),
    ]
    return (
        Section("Raw weights", (*raw[:2], *(own if suite else []), *raw[2:])),
        Section("Behind the guard", tuple(guarded)),
        Section("After relearning a tenth: answer probability on the rest", tuple(back)),
        Section("Cost of training", tuple(cost)),
    )


def _row(runs: Sequence[Judged], original: Mapping[str, float], base: tuple[float, float]) -> Row:
    numbers = [numbers_of(run, base) for run in runs]
    keys = dict.fromkeys(key for each in numbers for key in each)
    values = {key: [each.get(key, math.nan) for each in numbers] for key in keys}
    if runs[0].kind == "guard":
        raw = {key: value for key, value in original.items() if not is_guarded(key) and not key.startswith("cost.")}
        values |= {key: [value] for key, value in raw.items()}
    cells = {key: (p_interval if key == FORGET_QUALITY else seed_interval)(each) for key, each in values.items()}
    notes = {run.gate_reason for run in runs if run.gate_reason and run.kind == "method"}
    note = "weights as the original's" if runs[0].kind == "guard" else "; ".join(sorted(notes))
    return Row(runs[0].contestant, runs[0].kind, tuple(sorted(run.seed for run in runs)), cells, note)


def _tuning(tuned: Tuned) -> TuningRow:
    worthless = sum(1 for trial in tuned.trials if trial.score < WORTHLESS)
    return TuningRow(tuned.contestant, len(tuned.trials), tuned.best.score, tuned.best.parameters, worthless)


def _mean_cost(runs: Sequence[Judged]) -> tuple[float, float]:
    """(time, memory): processor seconds on a CPU, where other work disturbs the clock; seconds on an accelerator. And bytes."""
    costs = [run.cost for run in runs if not math.isnan(run.cost.seconds)]
    if not costs:
        return math.nan, math.nan
    times = [cost.processor_seconds if cost.device == "cpu" else cost.seconds for cost in costs]
    return float(np.mean(times)), float(np.mean([cost.peak_bytes for cost in costs]))


def _ratio(value: float, base: float) -> float:
    """NaN where the base is nothing: a small model may take no more memory than the process has held before."""
    return value / base if base else math.nan


def _named(sets: Mapping[str, JudgedSet], kind: str) -> list[str]:
    return [name for name, each in sets.items() if each.kind == kind]


def _words(name: str) -> str:
    return name.replace("_", " ")
