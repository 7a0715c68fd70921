"""Asking more than once: sampled answers, and the answers of a beam search; what one of them tells, the model still holds.

leak@k is the chance that at least one of k sampled answers tells. Of n answers, c of which tell, it is estimated without bias
as 1 - C(n - c, k) / C(n, k), as pass@k is. Source: Chen et al. 2021 (2107.03374, equation 1), Reisizadeh et al. 2025
(2511.04934).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from d2unlearn.attacks.reading import Measure, Reading, Setting
from d2unlearn.attacks.requests import AttackedOften, AttackReply, plain_request, reply_reading, told
from d2unlearn.errors import ConfigError
from d2unlearn.schema import Example
from d2unlearn.wordings.words import words_in

NOTHING_TO_TELL = "the row asks nothing, or its answer has no Latin letters or digits"


@dataclass(frozen=True)
class RepeatedSampling:
    """The attack's budget: at each temperature so many answers a row, of which k are looked at."""

    samples: int = 64
    ks: tuple[int, ...] = (1, 4, 16, 64)
    temperatures: tuple[float, ...] = (1.0,)
    beams: int = 4
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        counts = {"samples": self.samples, "beams": self.beams, "max_new_tokens": self.max_new_tokens}
        mistakes = [f"{name} must be at least 1, not {count}" for name, count in counts.items() if count < 1]
        if not self.ks or min(self.ks) < 1 or max(self.ks) > self.samples:
            mistakes.append(f"ks should be counts of 1 to {self.samples}, the samples, not {self.ks}")
        if not self.temperatures or min(self.temperatures) <= 0:
            mistakes.append(f"temperatures must be positive, not {self.temperatures}")
        if mistakes:
            raise ConfigError(mistakes)


def leak_at(k: int, n: int, c: int) -> float:
    """The chance that k of n answers, drawn without putting back, hold at least one of the c that tell.

    Raises `ValueError` unless 1 <= k <= n and 0 <= c <= n.
    """
    if not 1 <= k <= n or not 0 <= c <= n:
        raise ValueError(f"leak@{k} of {n} answers, {c} of which tell, is nothing")
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def leak_readings(
    answer: AttackedOften, name: str, rows: Sequence[Example], ks: Sequence[int], setting: Mapping[str, Setting], tokens: int
) -> list[Reading]:
    """leak@k for each k, and where there are refusals the share of answers refused, without k in its setting.

    answer: gives at least as many as the largest k; `name`: of the set; `tokens`: the most that an answer has.
    """
    replies = _asked(answer, rows, tokens)
    told_of = [_told(row, of_row) for row, of_row in zip(rows, replies, strict=True)]
    leaks = {k: [_leak(k, each) for each in told_of] for k in ks}
    readings = [_reading(name, rows, {**setting, "k": k}, "told", leaks[k], replies, told_of) for k in ks]
    if any(reply.refused for of_row in replies for reply in of_row):
        readings.append(_reading(name, rows, setting, "refused", list(map(_refused, replies)), replies, told_of))
    return readings


def any_told_reading(
    answer: AttackedOften, name: str, rows: Sequence[Example], setting: Mapping[str, Setting], tokens: int
) -> Reading:
    """1 where any of the answers tells, as for beams, which are not drawn."""
    replies = _asked(answer, rows, tokens)
    told_of = [_told(row, of_row) for row, of_row in zip(rows, replies, strict=True)]
    return _reading(name, rows, setting, "told", [max(each, default=math.nan) for each in told_of], replies, told_of)


def _asked(answer: AttackedOften, rows: Sequence[Example], tokens: int) -> list[Sequence[AttackReply]]:
    """The replies to each row; one with the reason to a row that cannot be asked."""
    replies: list[Sequence[AttackReply]] = [[AttackReply("", reason=NOTHING_TO_TELL)] for _ in rows]
    asked = [index for index, row in enumerate(rows) if row.question and words_in(row.answer)]
    said = answer([plain_request(rows[index]) for index in asked], tokens) if asked else ()
    for index, of_row in zip(asked, said, strict=True):
        replies[index] = of_row
    return replies


def _told(row: Example, replies: Sequence[AttackReply]) -> list[float]:
    """Of each answer, 1 where it tells; none for a row that was not asked."""
    return [] if replies[0].reason else [told(row.answer, reply) for reply in replies]


def _leak(k: int, told_of: Sequence[float]) -> float:
    return leak_at(k, len(told_of), round(sum(told_of))) if told_of else math.nan


def _refused(replies: Sequence[AttackReply]) -> float:
    return sum(reply.refused for reply in replies) / len(replies)


def _reading(
    name: str,
    rows: Sequence[Example],
    setting: Mapping[str, Setting],
    measure: Measure,
    values: Sequence[float],
    replies: Sequence[Sequence[AttackReply]],
    told_of: Sequence[Sequence[float]],
) -> Reading:
    """The text is the first answer that tells, or the first."""
    shown = [
        of_row[max(range(len(each)), key=each.__getitem__, default=0)] for of_row, each in zip(replies, told_of, strict=True)
    ]
    return reply_reading(name, rows, setting, measure, values, shown)
