"""Asking otherwise: every row in every wording; what a model tells in one of them, it has not forgotten.

Some wordings give words away (the answer's beginning, other rows); a model that never knew, asked the same, shows how much of
what is told comes from there. Source: RWKU (2406.10890) and Lynch et al. (2402.16835) for the forms, Patil et al. (2309.17410)
for counting a row as told when any form tells it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from d2unlearn.attacks.reading import NO_REFUSAL_BEFORE, Measure, Reading
from d2unlearn.attacks.requests import Attacked, AttackReply, AttackRequest, reply_reading, told
from d2unlearn.errors import ConfigError
from d2unlearn.schema import Example, Message
from d2unlearn.wordings.wording import FIRST_WORDS, Material, NotAsked, Reworded, Wording, reworded

ANY = "any"
"""In a reading's setting: told in any of the wordings (of the family that stands beside it)."""


@dataclass(frozen=True)
class AskingOtherwise:
    """The attack's budget. `words`, `seed`: as in `reworded`. What is longer than `max_new_tokens` cannot be told whole."""

    max_new_tokens: int = 64
    words: int = FIRST_WORDS
    seed: int = 0

    def __post_init__(self) -> None:
        counts = {"max_new_tokens": self.max_new_tokens, "words": self.words}
        mistakes = [f"{name} must be at least 1, not {count}" for name, count in counts.items() if count < 1]
        if mistakes:
            raise ConfigError(mistakes)


@dataclass(frozen=True)
class WordingOutcome:
    """A row in a wording, the text that would give the truth away (`target`), and what was said at the last turn."""

    row: Example
    wording: Wording
    target: str
    reply: AttackReply

    @property
    def told(self) -> float:
        """1 where the reply leaks the target, else 0; NaN where the row was not asked."""
        return math.nan if self.reply.reason else told(self.target, self.reply)

    @property
    def refused(self) -> float:
        """1 where the gate refused, else 0; NaN where the row was not asked."""
        return math.nan if self.reply.reason else float(self.reply.refused)


def ask_otherwise(
    answer: Attacked,
    rows: Sequence[Example],
    wordings: Sequence[Wording],
    material: Material,
    budget: AskingOtherwise,
    *,
    guarded: bool = False,
) -> list[WordingOutcome]:
    """Ask every row in every wording, wording by wording. Where one has several turns, the last answer is judged.

    guarded: answers are a gate's. Then what asks again after a refusal is asked only where there was one.
    """
    pairs = [(wording, row) for wording in wordings for row in rows]
    made = [reworded(wording, row, material, seed=budget.seed, words=budget.words) for wording, row in pairs]
    said = _answers(answer, made, [guarded and wording.after_refusal for wording, _ in pairs], budget.max_new_tokens)
    targets = [row.target if isinstance(row, Reworded) else "" for row in made]
    return [
        WordingOutcome(row, wording, target, reply) for (wording, row), target, reply in zip(pairs, targets, said, strict=True)
    ]


def wording_readings(name: str, outcomes: Sequence[WordingOutcome], measures: Sequence[Measure]) -> list[Reading]:
    """Of each wording one reading a measure (`told`, `refused`, `missed`), over its rows. `name`: of the set of rows."""
    of_wording: dict[str, list[WordingOutcome]] = {}
    for outcome in outcomes:
        of_wording.setdefault(outcome.wording.name, []).append(outcome)
    return [_reading(name, measure, of_one) for of_one in of_wording.values() for measure in measures]


def any_of(readings: Sequence[Reading], family: str) -> Reading:
    """Told in any of these wordings, row by row: the largest of what they say. Their set of rows and measure are one.

    NaN for a row that none of them asked. `family`: what the setting says beside `any`.
    """
    if len({(reading.rows, reading.measure) for reading in readings}) != 1:
        raise ValueError("any_of takes readings of one set of rows and one measure")
    best: dict[str, tuple[float, str]] = {}
    groups: dict[str, str] = {}
    for reading in readings:
        texts = reading.texts or ("",) * len(reading.row_ids)
        for row, group, value, text in zip(reading.row_ids, reading.groups, reading.values, texts, strict=True):
            groups[row] = group
            if row not in best or math.isnan(best[row][0]) or value > best[row][0]:
                best[row] = value, text
    values, said = zip(*best.values(), strict=True)
    unasked = sum(map(math.isnan, values))
    first = readings[0]
    return Reading(
        {"wording": ANY, "family": family},
        first.measure,
        first.rows,
        tuple(best),
        tuple(groups.values()),
        values,
        said,
        {"no wording asked it": unasked} if unasked else {},
    )


def any_of_families(readings: Iterable[Reading]) -> list[Reading]:
    """For each set of rows what any wording of a family tells, and any of all; the rows as they are stay out of it.

    A family of one wording, which already has its reading, and what has no wording are left out.
    """
    sets: dict[str, dict[str, list[Reading]]] = {}
    for reading in readings:
        if reading.measure == "told" and reading.setting.get("wording", "plain") not in ("plain", ANY):
            sets.setdefault(reading.rows, {}).setdefault(str(reading.setting["family"]), []).append(reading)
    made: list[Reading] = []
    for families in sets.values():
        made += [any_of(of_family, family) for family, of_family in families.items() if len(of_family) > 1]
        every = [reading for of_family in families.values() for reading in of_family]
        made += [any_of(every, ANY)] if len(every) > 1 else []
    return made


def _reading(name: str, measure: Measure, outcomes: Sequence[WordingOutcome]) -> Reading:
    wording, rows = outcomes[0].wording, [outcome.row for outcome in outcomes]
    values = {
        "told": [outcome.told for outcome in outcomes],
        "refused": [outcome.refused for outcome in outcomes],
        "missed": [1 - outcome.refused for outcome in outcomes],
    }[measure]
    setting = {"wording": wording.name, "family": wording.family}
    return reply_reading(name, rows, setting, measure, values, [outcome.reply for outcome in outcomes])


def _answers(
    answer: Attacked, made: Sequence[Reworded | NotAsked], only_refused: Sequence[bool], max_new_tokens: int
) -> list[AttackReply]:
    """The last answer to each; a row that cannot be asked at one turn is not asked at the next.

    only_refused: for each, whether a further turn needs a refusal before it.
    """
    said = [AttackReply("", reason=row.reason) if isinstance(row, NotAsked) else AttackReply("") for row in made]
    spoken: list[tuple[Message, ...]] = [()] * len(made)
    for turn in range(max((len(row.stages) for row in made if isinstance(row, Reworded)), default=0)):
        asked: dict[int, AttackRequest] = {}
        for index, row in enumerate(made):
            if not isinstance(row, Reworded) or turn >= len(row.stages) or said[index].reason:
                continue
            if turn and only_refused[index] and not said[index].refused:
                said[index] = AttackReply("", reason=NO_REFUSAL_BEFORE)
                continue
            spoken[index] += row.stages[turn]
            asked[index] = AttackRequest(spoken[index], row.beginning if turn == len(row.stages) - 1 else "")
        for index, reply in zip(asked, answer(list(asked.values()), max_new_tokens) if asked else (), strict=True):
            said[index] = reply
            spoken[index] += (Message("assistant", reply.text),)
    return said
