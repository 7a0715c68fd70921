"""Asking otherwise: every row in every wording; what a model tells in one of them, it has not forgotten.

Some wordings give words away (the answer's beginning, other rows); a model that never knew, asked the same, shows how much of
what is told comes from there. Source: RWKU (2406.10890) and Lynch et al. (2402.16835) for the forms, Patil et al. (2309.17410)
for counting a row as told when any form tells it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, NamedTuple, Protocol

from d2unlearn.errors import ConfigError
from d2unlearn.metrics.summary import set_metric
from d2unlearn.metrics.text import leaked, rouge_l_recall
from d2unlearn.schema import Example, Kind, Message, MetricResult
from d2unlearn.wordings.wording import FIRST_WORDS, Material, NotAsked, Reworded, Wording, reworded


class AttackRequest(NamedTuple):
    """A conversation that ends with the user's turn, and what the answer begins with, which the model continues."""

    messages: tuple[Message, ...]
    beginning: str = ""


class AttackReply(NamedTuple):
    """What the model added, or the refusal in its place. `reason`: why it could not be asked, empty where it was."""

    text: str
    refused: bool = False
    reason: str = ""


class Attacked(Protocol):
    """Answers conversations in order, each in at most so many new tokens (`d2unlearn.attacks.answering.attacked_model`)."""

    def __call__(self, asked: Sequence[AttackRequest], max_new_tokens: int) -> Sequence[AttackReply]: ...


@dataclass(frozen=True)
class AskingOtherwise:
    """The attack's budget. `rows`: at most so many, drawn by seed; None: all. `words`: as in `reworded`.

    What is longer than `max_new_tokens` cannot be told whole.
    """

    rows: int | None = None
    max_new_tokens: int = 64
    words: int = FIRST_WORDS
    seed: int = 0

    def __post_init__(self) -> None:
        counts = {"rows": self.rows, "max_new_tokens": self.max_new_tokens, "words": self.words}
        mistakes = [
            f"{name} must be at least 1, not {count}" for name, count in counts.items() if count is not None and count < 1
        ]
        if mistakes:
            raise ConfigError(mistakes)


@dataclass(frozen=True)
class WordingOutcome:
    """One row in one wording. `recall`: ROUGE-L recall of the wording's target in what the model added.

    `told`: 1 when that leaked the target (`metrics.text.leaked`), `told_whole`: when every word of it is there, in order. A
    refusal tells nothing. All NaN, with the reason, where the row was not asked.
    """

    example_id: str
    group: str | None
    wording: str
    family: str
    told: float
    told_whole: float
    recall: float
    refused: float
    text: str
    reason: str = ""


@dataclass(frozen=True)
class WordingsSummary:
    """What a wording, a family or all of them tell: shares of rows, with intervals over groups.

    A row is told when any wording tells it; `refusal`: the mean share of its wordings that are refused. Rows that no wording
    asked are not scored. `not_asked`: how often each reason kept a row from being asked.
    """

    told: MetricResult
    told_whole: MetricResult
    refusal: MetricResult
    not_asked: Mapping[str, int]


def drawn_rows(rows: Sequence[Example], budget: AskingOtherwise) -> list[Example]:
    """The rows that are asked, in their order."""
    if budget.rows is None or budget.rows >= len(rows):
        return list(rows)
    return [rows[index] for index in sorted(Random(budget.seed).sample(range(len(rows)), budget.rows))]


def ask_otherwise(
    answer: Attacked, rows: Sequence[Example], wordings: Sequence[Wording], material: Material, budget: AskingOtherwise
) -> list[WordingOutcome]:
    """Ask every row (those that the budget draws) in every wording, wording by wording. Nothing is asked twice for chance."""
    asked = drawn_rows(rows, budget)
    return [outcome for wording in wordings for outcome in ask_in(answer, asked, wording, material, budget)]


def ask_in(
    answer: Attacked, rows: Sequence[Example], wording: Wording, material: Material, budget: AskingOtherwise
) -> list[WordingOutcome]:
    """Ask these rows in one wording. Where it has several turns, the last answer is judged."""
    made = [reworded(wording, row, material, seed=budget.seed, words=budget.words) for row in rows]
    said = _answers(answer, made, budget.max_new_tokens)
    return [_outcome(wording, row, *pair) for row, pair in zip(rows, zip(made, said, strict=True), strict=True)]


def wordings_summary(outcomes: Sequence[WordingOutcome], kind: Kind, *, seed: int = 0) -> WordingsSummary:
    """All outcomes as one, over their rows. kind: of the rows, for which direction is good."""
    by_row: dict[str, list[WordingOutcome]] = {}
    for outcome in outcomes:
        by_row.setdefault(outcome.example_id, []).append(outcome)
    groups = [of_row[0].group for of_row in by_row.values()]
    labels = [str(group) for group in groups] if len(set(groups)) > 1 and None not in groups else None

    def share(name: str, values: list[float]) -> MetricResult:
        return set_metric(name, kind, values, labels, seed)

    return WordingsSummary(
        share("told_rate", [_largest([each.told for each in of_row]) for of_row in by_row.values()]),
        share("told_whole_rate", [_largest([each.told_whole for each in of_row]) for of_row in by_row.values()]),
        share("refusal_rate", [_mean([each.refused for each in of_row]) for of_row in by_row.values()]),
        dict(Counter(outcome.reason for outcome in outcomes if outcome.reason)),
    )


def summaries_by(
    part: Literal["wording", "family"], outcomes: Sequence[WordingOutcome], kind: Kind, *, seed: int = 0
) -> dict[str, WordingsSummary]:
    """The summary of each wording or family, in the order of the outcomes."""
    parts: dict[str, list[WordingOutcome]] = {}
    for outcome in outcomes:
        parts.setdefault(outcome.wording if part == "wording" else outcome.family, []).append(outcome)
    return {name: wordings_summary(of_part, kind, seed=seed) for name, of_part in parts.items()}


def _answers(answer: Attacked, made: Sequence[Reworded | NotAsked], max_new_tokens: int) -> list[AttackReply]:
    """The last answer to each; a row that cannot be asked at one turn is not asked at the next."""
    said = [AttackReply("", reason=row.reason) if isinstance(row, NotAsked) else AttackReply("") for row in made]
    spoken: list[tuple[Message, ...]] = [()] * len(made)
    for turn in range(max((len(row.stages) for row in made if isinstance(row, Reworded)), default=0)):
        asked: dict[int, AttackRequest] = {}
        for index, row in enumerate(made):
            if isinstance(row, Reworded) and turn < len(row.stages) and not said[index].reason:
                spoken[index] += row.stages[turn]
                asked[index] = AttackRequest(spoken[index], row.beginning if turn == len(row.stages) - 1 else "")
        for index, reply in zip(asked, answer(list(asked.values()), max_new_tokens) if asked else (), strict=True):
            said[index] = reply
            spoken[index] += (Message("assistant", reply.text),)
    return said


def _outcome(wording: Wording, row: Example, made: Reworded | NotAsked, said: AttackReply) -> WordingOutcome:
    row_and_wording = (row.example_id, row.group, wording.name, wording.family)
    if isinstance(made, NotAsked) or said.reason:
        return WordingOutcome(*row_and_wording, math.nan, math.nan, math.nan, math.nan, "", said.reason)
    recall = 0.0 if said.refused else rouge_l_recall(made.target, said.text)
    return WordingOutcome(*row_and_wording, leaked(recall), float(recall == 1), recall, float(said.refused), said.text)


def _largest(values: Sequence[float]) -> float:
    return max((value for value in values if not math.isnan(value)), default=math.nan)


def _mean(values: Sequence[float]) -> float:
    scored = [value for value in values if not math.isnan(value)]
    return sum(scored) / len(scored) if scored else math.nan
