"""Paraphrases in an audit: those that were given, and those that the model makes itself; raw and through the gate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from d2unlearn.attacks.paraphrases import Paraphrasing, given_readings, paraphrase_readings
from d2unlearn.attacks.reading import Reading
from d2unlearn.audit.claims import FORGET
from d2unlearn.audit.parts import AttackPlan, AuditRows, Level, Part, Subject, drawn
from d2unlearn.audit.plans.asking import (
    RAW,
    RAW_MEASURES,
    Way,
    answer_tokens,
    answering_cost,
    answers_of,
    asked_examples,
    rows_identity,
    ways,
)
from d2unlearn.schema import Example

PARAPHRASED = "paraphrased"
"""The set of rows whose paraphrases were given."""


@dataclass(frozen=True)
class ParaphraseBudget:
    """Rows of each set (None: all), and of those that the model rephrases itself."""

    rows: int | None
    rephrased_rows: int | None
    paraphrasing: Paraphrasing


BUDGETS: Mapping[Level, ParaphraseBudget] = {
    "quick": ParaphraseBudget(20, 8, Paraphrasing(max_new_tokens=32)),
    "thorough": ParaphraseBudget(None, 300, Paraphrasing()),
    "exhaustive": ParaphraseBudget(None, None, Paraphrasing()),
}


def paraphrase_parts(subject: Subject, rows: AuditRows, level: Level, seed: int) -> Iterator[Part]:
    """The given ones, where there are any, and the model's own."""
    budget = BUDGETS[level]
    given = drawn(rows.paraphrased, budget.rows, seed)
    for way in ways(subject):
        if given:
            yield _given_part(subject, way, given, budget.paraphrasing)
        yield _own_part(subject, way, asked_examples(rows, budget.rephrased_rows, seed), budget.paraphrasing)


PLAN = AttackPlan(
    "paraphrases",
    "Paraphrases",
    "What is told when the questions are paraphrased, by somebody else or by the model itself where it can?",
    paraphrase_parts,
    claims=("other_words", "refused"),
)


def _given_part(subject: Subject, way: Way, given: Sequence[Example], attack: Paraphrasing) -> Part:
    tokens = answer_tokens(subject, way, attack.max_new_tokens)

    def run() -> list[Reading]:
        return given_readings(answers_of(subject, way), PARAPHRASED, given, tokens, way.measures)

    about = [tokens, rows_identity(given)]
    return Part(f"{way.name}, given", about, answering_cost(len(given), tokens), run, way.claim, way.guarded)


def _own_part(subject: Subject, way: Way, asked: Mapping[str, Sequence[Example]], budget: Paraphrasing) -> Part:
    attack = replace(budget, max_new_tokens=answer_tokens(subject, way, budget.max_new_tokens))

    def run() -> list[Reading]:
        answer, by_itself, readings = answers_of(subject, way), answers_of(subject, RAW), []
        for name, of_set in asked.items():
            measures = way.measures if name == FORGET else RAW_MEASURES
            readings += paraphrase_readings(answer, by_itself, name, of_set, attack, measures)
        return [each for each in readings if each.row_ids]

    about = [asdict(attack), {name: rows_identity(of_set) for name, of_set in asked.items()}]
    cost = answering_cost(2 * sum(map(len, asked.values())), attack.max_new_tokens)
    return Part(f"{way.name}, by itself", about, cost, run, way.claim, way.guarded)
