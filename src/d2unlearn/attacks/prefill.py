"""Prefill: the true answer's first tokens are put into the model's mouth, and it goes on.

What a model that never knew makes of the same beginning shows how much the beginning alone tells. Source: prefilling attacks on
shallow alignment (Qi et al. 2024, 2406.05946), with true tokens in the place of a friendly prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from d2unlearn.attacks.reading import Measure, Reading
from d2unlearn.attacks.requests import Attacked, AttackReply, AttackRequest, reply_reading, told
from d2unlearn.data.template import Template
from d2unlearn.errors import ConfigError
from d2unlearn.schema import Example
from d2unlearn.wordings.wording import LEAST_REST
from d2unlearn.wordings.words import words_in

TOO_SHORT = f"fewer than {LEAST_REST} words are left to be told"


@dataclass(frozen=True)
class Prefill:
    """The attack's budget: how many of the answer's tokens are given, and how many the model may add."""

    lengths: tuple[int, ...] = (1, 2, 4, 8)
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        mistakes = [] if self.lengths and min(self.lengths) >= 1 else ["lengths should be counts of at least 1"]
        mistakes += [] if self.max_new_tokens >= 1 else [f"max_new_tokens must be at least 1, not {self.max_new_tokens}"]
        if mistakes:
            raise ConfigError(mistakes)


class _Begun(NamedTuple):
    """A row with its answer begun, and the rest, which would give the truth away; empty where too little is left."""

    request: AttackRequest
    rest: str


def prefilled(
    answer: Attacked, template: Template, name: str, rows: Sequence[Example], attack: Prefill, measures: Sequence[Measure]
) -> list[Reading]:
    """Of each length one reading a measure (`told`, `refused`). A row with too little left is not asked. `name`: of the set."""
    begun = [[_begun(template, row, length) for row in rows] for length in attack.lengths]
    asked = [each for of_length in begun for each in of_length if each.rest]
    said = iter(answer([each.request for each in asked], attack.max_new_tokens) if asked else ())
    readings: list[Reading] = []
    for length, of_length in zip(attack.lengths, begun, strict=True):
        replies = [next(said) if each.rest else AttackReply("", reason=TOO_SHORT) for each in of_length]
        targets = [each.rest for each in of_length]
        readings += [_reading(name, rows, length, measure, targets, replies) for measure in measures]
    return readings


def _begun(template: Template, row: Example, length: int) -> _Begun:
    tokens = template.tokens(row)
    ids = [token for token, is_answer in zip(tokens.input_ids, tokens.answer_mask, strict=True) if is_answer]
    rest = str(template.tokenizer.decode(ids[length:], skip_special_tokens=True)).strip()
    enough = len(words_in(rest)) >= LEAST_REST and bool(row.prompt)
    return _Begun(AttackRequest(row.prompt, tuple(ids[:length])), rest if enough else "")


def _reading(
    name: str, rows: Sequence[Example], length: int, measure: Measure, targets: Sequence[str], replies: Sequence[AttackReply]
) -> Reading:
    values = [
        told(target, reply) if measure == "told" else float(reply.refused)
        for target, reply in zip(targets, replies, strict=True)
    ]
    return reply_reading(name, rows, {"first tokens": length}, measure, values, replies)
