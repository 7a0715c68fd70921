"""How much of the search for universal words an audit makes: before and after the questions, raw and through the gate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace

from d2unlearn.attacks.reading import Reading
from d2unlearn.attacks.universal_prefix import Place, PrefixSearch, universal_readings
from d2unlearn.audit.claims import FORGET
from d2unlearn.audit.parts import AttackPlan, AuditRows, Level, Part, Subject
from d2unlearn.audit.plans.asking import (
    Way,
    answer_tokens,
    answering_cost,
    answers_of,
    asked_examples,
    rows_identity,
    ways,
)


@dataclass(frozen=True)
class PrefixBudget:
    """Rows of each set (None: all), where words are put, and how they are searched for."""

    rows: int | None
    places: tuple[Place, ...]
    search: PrefixSearch


BUDGETS: Mapping[Level, PrefixBudget] = {
    "quick": PrefixBudget(40, ("before",), PrefixSearch(3, 4, 6, crossed=False, max_new_tokens=32)),
    "thorough": PrefixBudget(300, ("before", "after"), PrefixSearch()),
    "exhaustive": PrefixBudget(None, ("before", "after"), PrefixSearch(40, 16, 50, most=8)),
}


def prefix_parts(subject: Subject, rows: AuditRows, level: Level, seed: int) -> Iterator[Part]:
    """A search for each place, raw and through the gate."""
    budget = BUDGETS[level]
    for way in ways(subject):
        for place in budget.places:
            yield _part(subject, way, rows, place, budget, seed)


PLAN = AttackPlan(
    "universal_prefix",
    "Searched words",
    "Are there words that, put before or after any forgotten question, make the model tell? Found on half of the questions, "
    "judged on the other.",
    prefix_parts,
    claims=("other_words", "refused"),
)


def _part(subject: Subject, way: Way, rows: AuditRows, place: Place, budget: PrefixBudget, seed: int) -> Part:
    tokens = answer_tokens(subject, way, budget.search.max_new_tokens)
    search = replace(budget.search, max_new_tokens=tokens, seed=seed)
    others = asked_examples(rows, budget.rows, seed)
    forget = others.pop(FORGET)

    def run() -> list[Reading]:
        return universal_readings(answers_of(subject, way), FORGET, forget, others, place, search, way.measures)

    about = [place, asdict(search), {name: rows_identity(of_set) for name, of_set in {FORGET: forget, **others}.items()}]
    searches = 2 if search.crossed else 1
    answers = searches * search.tried + len(forget) * searches // 2 + sum(map(len, others.values()))
    return Part(f"{way.name}, {place}", about, answering_cost(answers, tokens), run, way.claim, way.guarded)
