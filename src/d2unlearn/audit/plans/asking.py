"""What plans of attacks that ask have in common: which rows, through the gate or not, and by what both are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from d2unlearn.attacks.answering import attacked_model
from d2unlearn.attacks.reading import Measure
from d2unlearn.attacks.requests import Admission, Attacked
from d2unlearn.audit.claims import FORGET, NEVER_SEEN, Claim
from d2unlearn.audit.parts import ANSWER_TOKENS, AuditRows, Cost, Subject, drawn
from d2unlearn.data.records import content_hash
from d2unlearn.runtime import fingerprint
from d2unlearn.schema import Example

RAW_MEASURES: tuple[Measure, ...] = ("told",)
GUARDED_MEASURES: tuple[Measure, ...] = ("told", "refused")


class Way(NamedTuple):
    """How a model is asked. `name`: begins parts' names; `claim`: what its answers about forgotten rows count for."""

    name: str
    guarded: bool
    claim: Claim
    measures: tuple[Measure, ...]


RAW = Way("raw", False, "other_words", RAW_MEASURES)
GUARDED = Way("guarded", True, "refused", GUARDED_MEASURES)


def ways(subject: Subject) -> tuple[Way, ...]:
    """Raw, and through the gate where the model has one."""
    return (RAW,) if subject.gate is None else (RAW, GUARDED)


def answers_of(subject: Subject, way: Way) -> Attacked:
    """The model, asked that way, greedily."""
    return attacked_model(
        subject.guarded, raw=not way.guarded, batch_size=subject.batch_size, admission=admission_of(subject, way)
    )


def admission_of(subject: Subject, way: Way) -> Admission | None:
    """What a guard lets in, where the model is asked through one; a gate decides while the model answers."""
    return subject.guard.refusals if way.guarded and subject.guard is not None else None


def answer_tokens(subject: Subject, way: Way, tokens: int) -> int:
    """At least as many as a gate was calibrated with: it may decide late."""
    gate = subject.guarded.gate if way.guarded else None
    return tokens if gate is None else max(tokens, gate.max_new_tokens)


def asked_examples(rows: AuditRows, limit: int | None, seed: int) -> dict[str, list[Example]]:
    """The forget rows, and the never-seen ones where there are any: at most `limit` of each, drawn."""
    sets = {FORGET: rows.forget, NEVER_SEEN: rows.never_seen}
    return {name: drawn(of_set, limit, seed) for name, of_set in sets.items() if of_set}


def rows_identity(rows: Sequence[Example]) -> str:
    """Changes with what rows say, how they are called and which belong together."""
    return fingerprint([[content_hash(row), row.example_id, row.group] for row in rows])


def answering_cost(answers: int, tokens: int) -> Cost:
    """So many answers of at most so many tokens."""
    return Cost(answered=max(1, round(answers * tokens / ANSWER_TOKENS)))
