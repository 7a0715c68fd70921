"""From the records of runs to tables: means over seeds with intervals. Pure.

Every number is of test questions. What tuning measured on validation questions stays with the tunings (`TuningRow`).
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from d2unlearn.attacks.wordings import ANY
from d2unlearn.comparison.outcomes import (
    ATTACK_STEPS,
    COMEBACK,
    GUARDED_ROUGE,
    OTHER_WORDS,
    REFUSAL_RATE,
    RELEARNED_ROWS,
    STRENGTH,
    MetricOutcome,
    outcomes_of,
)
from d2unlearn.comparison.records import ORIGINAL, PROPOSED_METHOD, RETAIN_MODEL, EntryKind, RunResult, SetResult, TuningResult
from d2unlearn.report.notation import readable
from d2unlearn.schema import Better

CONFIDENCE = 0.95
"""Of the intervals over seeds."""
FAILED_SCORE = 1e-3
"""The score of a trial, of 1, below which nothing was forgotten or nothing is left."""
LABELS = {
    STRENGTH: "{}: extraction strength",
    "answer_probability": "{}: answer probability",
    "token_entropy": "{}: token entropy",
    "leak_rate": "{}: leaks",
    "guarded_leak_rate": "leaks: {}",
    REFUSAL_RATE: "gate refuses: {}",
    GUARDED_ROUGE: "told: {}",
}
"""What a metric is called, by its name without the set's."""
OLDER_ROWS = {"first": "whole authors", "spread": "rows of all authors"}
"""What was relearned in older results, at one learning rate."""
FORGET_QUALITY = "suite.forget_quality"
"""A p-value: it spans orders of magnitude, so its mean over seeds is that of logarithms."""


@dataclass(frozen=True)
class TableColumn:
    """A number that is shown of every entry. `key`: of `numbers_of`."""

    key: str
    label: str
    better: Better
    percent: bool = False


@dataclass(frozen=True)
class SeedMean:
    """Mean over `n` seeds, and its 95% interval (Student's t); NaN where there are not two. Geometric for a p-value."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class EntryRow:
    """An entry. `note`: why numbers are missing, or whose they are."""

    contestant: str
    kind: EntryKind
    seeds: tuple[int, ...]
    cells: Mapping[str, SeedMean]
    note: str = ""


@dataclass(frozen=True)
class TableSection:
    """Columns that belong together."""

    title: str
    columns: tuple[TableColumn, ...]


@dataclass(frozen=True)
class TuningRow:
    """What tuning chose, and how that scored on validation questions. `worthless`: failed trials, which scored next to 0."""

    contestant: str
    trials: int
    score: float
    parameters: Mapping[str, float]
    worthless: int


@dataclass(frozen=True)
class SplitTable:
    """Everything about one split. `sizes`: test questions by set; `ungated`: entries that answer what others refuse."""

    split: str
    sizes: Mapping[str, int]
    sections: tuple[TableSection, ...]
    rows: tuple[EntryRow, ...]
    outcomes: tuple[MetricOutcome, ...]
    tunings: tuple[TuningRow, ...]
    machines: tuple[str, ...]
    ungated: tuple[str, ...]


def split_table(
    split: str,
    runs: Sequence[RunResult],
    tunings: Sequence[TuningResult],
    left_out: Mapping[str, str],
    order: Sequence[str] = (),
    refuses_in_text: Collection[str] = (),
) -> SplitTable:
    """The table of one split from its runs.

    left_out: entries without runs, and why; order: of the entries; refuses_in_text: those that refuse in words, or not at all.
    """
    runs = [run for run in runs if run.split == split]
    tunings = [tuning for tuning in tunings if tuning.split == split]
    order = [ORIGINAL, RETAIN_MODEL, *order]
    rank = defaultdict(lambda: len(order), {name: index for index, name in enumerate(order)})
    names = sorted(dict.fromkeys(run.contestant for run in runs), key=rank.__getitem__)
    base = _mean_cost([run for run in runs if run.contestant == PROPOSED_METHOD])
    original = next((numbers_of(run, base) for run in runs if run.contestant == ORIGINAL), {})
    rows = [_row([run for run in runs if run.contestant == name], original, base) for name in names]
    rows += [EntryRow(name, "guard", (), {}, reason) for name, reason in left_out.items()]
    sets = {questions.name: questions for run in runs for questions in run.sets}
    reworded = {questions.name: questions for run in runs for questions in run.reworded}
    return SplitTable(
        split,
        {name: questions.n for name, questions in sets.items()} | _asked_reworded(reworded),
        sections_of(
            sets,
            any(run.suite for run in runs),
            {attack.choice for run in runs for attack in run.comebacks},
            list(reworded),
        ),
        tuple(rows),
        tuple(outcomes_of(runs, names, refuses_in_text=refuses_in_text)),
        tuple(_tuning(tuning) for tuning in sorted(tunings, key=lambda tuning: rank[tuning.contestant])),
        tuple(sorted({run.machine for run in runs})),
        tuple(name for name in names if name in refuses_in_text),
    )


def entries_in(tables: Sequence[SplitTable]) -> list[str]:
    """All entries, in the order of the tables."""
    return list(dict.fromkeys(row.contestant for table in tables for row in table.rows))


def numbers_of(run: RunResult, base: tuple[float, float] = (math.nan, math.nan)) -> dict[str, float]:
    """Every number of a run by its key. base: (time, memory) that cost is a ratio to."""
    sets = (*run.sets, *run.reworded)
    numbers = {f"{questions.name}.{metric.name}": metric.value for questions in sets for metric in questions.metrics}
    numbers |= {f"suite.{metric.name}": metric.value for metric in run.suite}
    numbers |= {f"separation.{metric.name}": metric.value for metric in run.separation}
    for attack in run.comebacks:
        numbers |= {f"{COMEBACK}.{attack.choice}.{steps}": metric.value for steps, metric in attack.probability.items()}
    time, memory = _mean_cost([run])
    return numbers | {"cost.seconds": time, "cost.time": _ratio(time, base[0]), "cost.memory": _ratio(memory, base[1])}


def p_interval(values: Sequence[float]) -> SeedMean:
    """Geometric mean of p-values over seeds and its interval, which ends at 1; NaN values are left out."""
    found = seed_interval([math.log(max(value, sys.float_info.min)) for value in values])
    mean, low, high = (math.exp(min(end, 0.0)) for end in (found.value, found.low, found.high))
    return SeedMean(mean, low, high, found.n)


def seed_interval(values: Sequence[float]) -> SeedMean:
    """Mean over seeds and its interval; NaN values are left out."""
    known = np.array([value for value in values if not math.isnan(value)])
    if not len(known):
        return SeedMean(math.nan, math.nan, math.nan, 0)
    mean = float(known.mean())
    if len(known) == 1:
        return SeedMean(mean, math.nan, math.nan, 1)
    half = float(student.ppf((1 + CONFIDENCE) / 2, len(known) - 1) * known.std(ddof=1) / math.sqrt(len(known)))
    return SeedMean(mean, mean - half, mean + half, len(known))


def sections_of(
    sets: Mapping[str, SetResult], suite: bool, relearned: AbstractSet[str] = frozenset(), reworded: Sequence[str] = ()
) -> tuple[TableSection, ...]:
    """What is shown, from the sets that there are.

    relearned: the choices of rows that some run relearned; reworded: the names of the sets asked in other words.
    """
    forget = [name for name, questions in sets.items() if questions.kind == "forget"]
    retain = [name for name, questions in sets.items() if questions.kind == "retain"]
    others = [name for name in forget if name != "forget"]
    raw = [
        _column("forget", STRENGTH, "lower"),
        _column("forget", "answer_probability", "lower"),
        *(_column(name, STRENGTH, "lower") for name in others),
        *(_column(name, "leak_rate", "lower") for name in others),
        *(TableColumn(f"{name}.{ANY}", metric_label(f"{name}.{ANY}"), "lower", percent=True) for name in reworded),
        _column("forget", "token_entropy", "higher"),
        *(_column(name, STRENGTH, "higher") for name in retain),
    ]
    own = [
        TableColumn(FORGET_QUALITY, "forget quality", "higher"),
        TableColumn("suite.model_utility", "model utility", "higher"),
        TableColumn("suite.forget_truth_ratio", "forget truth ratio", "higher"),
    ]
    guarded = [
        *(_column(name, REFUSAL_RATE, "higher") for name in forget),
        *(_column(name, "guarded_leak_rate", "lower") for name in forget),
        *(_column(name, REFUSAL_RATE, "lower") for name in retain),
        _column("forget", GUARDED_ROUGE, "lower"),
        _column("retain", GUARDED_ROUGE, "higher"),
        TableColumn("separation.auroc_gate_forget_vs_retain", "AUROC of the guard's score", "higher"),
    ]
    cost = (
        TableColumn("cost.seconds", "seconds of training", "lower"),
        TableColumn("cost.time", f"time / {PROPOSED_METHOD}", "lower"),
        TableColumn("cost.memory", f"memory / {PROPOSED_METHOD}", "lower"),
    )
    return (
        TableSection("Raw weights", (*raw[:2], *(own if suite else []), *raw[2:])),
        TableSection("Behind the guard", tuple(guarded)),
        *_relearning_sections(relearned),
        TableSection("Cost of training", cost),
    )


def metric_label(metric: str) -> str:
    """What an outcome's `SET.METRIC` is called, as in the columns; what comes back is named after the attack."""
    if metric.startswith(f"{COMEBACK}."):
        _, choice, steps = metric.split(".")
        return f"relearned: {OLDER_ROWS.get(choice, choice)}, {steps} steps"
    if metric.startswith(f"{OTHER_WORDS}."):
        return f"told in other words, any of {metric.split('.')[1]}"
    name, kind = metric.rsplit(".", 1)
    return LABELS[kind].format(readable(name))


def _asked_reworded(reworded: Mapping[str, SetResult]) -> dict[str, int]:
    """How many of the forgotten questions are asked in other words, where any are."""
    return {f"forget_in_{OTHER_WORDS}": max(questions.n for questions in reworded.values())} if reworded else {}


def _relearning_sections(relearned: AbstractSet[str]) -> list[TableSection]:
    """What came back; of older results, by learning rate and steps, in a section of their own."""
    new: list[str] = [choice for choice in RELEARNED_ROWS if choice in relearned]
    sections = []
    if new:
        columns = [(f"{COMEBACK}.{choice}.{ATTACK_STEPS}", choice) for choice in new]
        title = f"After relearning for {ATTACK_STEPS} steps at the worst learning rate: answer probability on the other rows"
        sections.append((title, [(f"{COMEBACK}.{new[0]}.0", "at rest"), *columns]))
    if not new or not relearned.isdisjoint(OLDER_ROWS):
        columns = [(f"{COMEBACK}.{name}.{n}", f"{words}, {n} steps") for name, words in OLDER_ROWS.items() for n in (5, 20)]
        title = "After relearning a tenth: answer probability on the rest"
        sections.append((title, [(f"{COMEBACK}.first.0", "at rest"), *columns]))
    return [TableSection(title, tuple(TableColumn(key, label, "lower") for key, label in each)) for title, each in sections]


def _column(name: str, kind: str, better: Better) -> TableColumn:
    return TableColumn(f"{name}.{kind}", metric_label(f"{name}.{kind}"), better, kind.endswith("_rate"))


def _row(runs: Sequence[RunResult], original: Mapping[str, float], base: tuple[float, float]) -> EntryRow:
    numbers = [numbers_of(run, base) for run in runs]
    keys = dict.fromkeys(key for of_run in numbers for key in of_run)
    values = {key: [of_run.get(key, math.nan) for of_run in numbers] for key in keys}
    if runs[0].kind == "guard":
        values |= {key: [value] for key, value in original.items() if _of_weights(key)}
    cells = {key: (p_interval if key == FORGET_QUALITY else seed_interval)(known) for key, known in values.items()}
    notes = {run.gate_reason for run in runs if run.gate_reason and run.kind == "method"}
    note = "weights as the original's" if runs[0].kind == "guard" else "; ".join(sorted(notes))
    return EntryRow(runs[0].contestant, runs[0].kind, tuple(sorted(run.seed for run in runs)), cells, note)


def _of_weights(key: str) -> bool:
    """Whether a number depends on the weights alone."""
    return not (".guarded_" in key or "_gate_" in key or key.startswith(("separation.", "cost.")))


def _tuning(tuning: TuningResult) -> TuningRow:
    failed_trials = sum(trial.score < FAILED_SCORE for trial in tuning.trials)
    return TuningRow(tuning.contestant, len(tuning.trials), tuning.best.score, tuning.best.parameters, failed_trials)


def _mean_cost(runs: Sequence[RunResult]) -> tuple[float, float]:
    """(time, memory): processor seconds on a CPU, where other work disturbs the clock; seconds on an accelerator. And bytes."""
    costs = [run.cost for run in runs if not math.isnan(run.cost.seconds)]
    if not costs:
        return math.nan, math.nan
    times = [cost.processor_seconds if cost.device == "cpu" else cost.seconds for cost in costs]
    return float(np.mean(times)), float(np.mean([cost.peak_bytes for cost in costs]))


def _ratio(value: float, base: float) -> float:
    """NaN where the base is nothing: a small model may take no more memory than the process has held before."""
    return value / base if base else math.nan
