"""What a comparison keeps of its runs: two records, a JSON file each, made of plain values. Imports no torch.

The fields' names are the files' keys: `contestant` is an entry's name, `comebacks` are the results of relearning.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from d2unlearn.schema import Kind, MetricResult, RelearningResult

EntryKind = Literal["as_is", "method", "guard"]
"""A model as it is (the original, the retain model), one that a method trained, or untouched weights behind a guard."""
ORIGINAL, RETAIN_MODEL = "original", "oracle"
PROPOSED_METHOD = "eua"
"""What all others are compared with."""


@dataclass(frozen=True)
class Trial:
    """One choice of parameters, tried out. `score`: the objective, 0 to 1; `measured`: what it is made of, on validation.

    `reason`: why there is nothing measured (the model was destroyed, say); the score is 0 then.
    """

    number: int
    parameters: Mapping[str, float]
    score: float
    measured: Mapping[str, float]
    seconds: float
    reason: str = ""


@dataclass(frozen=True)
class TuningResult:
    """The trials of an entry on a split, in order. `chosen`: the number of the best; `before`: the original's measures."""

    key: str
    identity: str
    split: str
    contestant: str
    kind: EntryKind
    seed: int
    trials: tuple[Trial, ...]
    chosen: int
    before: Mapping[str, float]
    n_forget: int
    n_retain: int
    machine: str
    versions: Mapping[str, str]

    @property
    def best(self) -> Trial:
        return self.trials[self.chosen]


@dataclass(frozen=True)
class SetResult:
    """One set of test questions. `groups`: each question's author or document; `values`: some metrics, question by question.

    Questions stand in the file's order, the same in every run of a split, so that runs can be compared question by question.
    """

    name: str
    kind: Kind
    n: int
    metrics: tuple[MetricResult, ...]
    groups: tuple[str, ...]
    values: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class TrainingCost:
    """What training took: wall-clock and processor seconds, and bytes held at once beyond what the process held before.

    NaN where it could not be measured (a run that was interrupted, a system that does not tell) or nothing was trained.
    """

    seconds: float
    processor_seconds: float
    peak_bytes: float
    device: str


NO_COST = TrainingCost(math.nan, math.nan, math.nan, "")


@dataclass(frozen=True)
class RunResult:
    """One entry on one split with one seed, evaluated on test questions.

    `parameters`: those that were chosen; empty for a model as it is. `score_name`, `threshold`: of its gate or guard;
    `gate_reason`: why there is none. `suite`: a benchmark's metrics. `reworded`: what the raw weights tell of some forgotten
    questions in other words, by family of wordings; empty for a guard, and in older results.
    """

    key: str
    identity: str
    split: str
    contestant: str
    kind: EntryKind
    seed: int
    parameters: Mapping[str, float]
    learning_rate: float | None
    sets: tuple[SetResult, ...]
    separation: tuple[MetricResult, ...]
    suite: tuple[MetricResult, ...]
    score_name: str | None
    threshold: float | None
    gate_reason: str
    comebacks: tuple[RelearningResult, ...]
    cost: TrainingCost
    machine: str
    versions: Mapping[str, str]
    reworded: tuple[SetResult, ...] = ()

    def of_set(self, name: str) -> SetResult | None:
        return next((result for result in (*self.sets, *self.reworded) if result.name == name), None)


def group_numbers(groups: Sequence[str | None]) -> tuple[str, ...]:
    """Groups as numbers in the order in which they come; what has none stands for itself."""
    labels = [str(index) if group is None else group for index, group in enumerate(groups)]
    numbers = {label: str(number) for number, label in enumerate(dict.fromkeys(labels))}
    return tuple(numbers[label] for label in labels)
