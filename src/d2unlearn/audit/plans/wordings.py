"""How much of asking otherwise an audit makes: the wordings that judge, and the answer's first tokens; raw and guarded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from d2unlearn.attacks.prefill import Prefill, prefilled
from d2unlearn.attacks.reading import Reading
from d2unlearn.attacks.wordings import AskingOtherwise, any_of_families, ask_otherwise, wording_readings
from d2unlearn.audit.claims import FORGET
from d2unlearn.audit.judging import judging_wordings
from d2unlearn.audit.parts import AttackPlan, AuditRows, Level, Part, Subject
from d2unlearn.audit.plans.asking import (
    RAW_MEASURES,
    Way,
    answer_tokens,
    answering_cost,
    answers_of,
    asked_examples,
    rows_identity,
    ways,
)
from d2unlearn.errors import ConfigError
from d2unlearn.schema import Example
from d2unlearn.wordings.wording import AS_IT_IS, Material, Wording


@dataclass(frozen=True)
class WordingBudget:
    """Rows of each set (None: all), the attacks' own budgets, wordings of each family (None: all), and families a part."""

    rows: int | None
    asking: AskingOtherwise
    prefill: Prefill
    of_family: int | None = None
    families: int = 1

    def __post_init__(self) -> None:
        counts = {"rows": self.rows, "of_family": self.of_family, "families": self.families}
        mistakes = [f"{name} must be at least 1" for name, count in counts.items() if count is not None and count < 1]
        if mistakes:
            raise ConfigError(mistakes)


BUDGETS: Mapping[Level, WordingBudget] = {
    "quick": WordingBudget(12, AskingOtherwise(32), Prefill((1, 4), 32), of_family=1, families=6),
    "thorough": WordingBudget(300, AskingOtherwise(), Prefill()),
    "exhaustive": WordingBudget(None, AskingOtherwise(), Prefill()),
}


def bundles(wordings: Sequence[Wording], of_family: int | None, together: int) -> dict[str, list[Wording]]:
    """So many wordings of each family (None: all), and so many families in a part, by their names."""
    families: dict[str, list[Wording]] = {}
    for wording in wordings:
        families.setdefault(wording.family, []).append(wording)
    names = list(families)
    parts = [names[start : start + together] for start in range(0, len(names), together)]
    return {", ".join(part): [each for name in part for each in families[name][:of_family]] for part in parts}


def wording_parts(subject: Subject, rows: AuditRows, level: Level, seed: int) -> Iterator[Part]:
    """The rows as they are, every bundle of families, and the answer's first tokens; each raw and through the gate."""
    budget = BUDGETS[level]
    asked = asked_examples(rows, budget.rows, seed)
    material = Material(benign=rows.retain, forgotten=rows.forget)
    for way in ways(subject):
        yield _wordings_part(subject, way, "as they are", [AS_IT_IS], asked, material, budget, seed)
        for name, wordings in bundles(judging_wordings(), budget.of_family, budget.families).items():
            yield _wordings_part(subject, way, name, wordings, asked, material, budget, seed)
        yield _prefill_part(subject, way, asked, budget.prefill)


PLAN = AttackPlan(
    "wordings",
    "Asking otherwise",
    "What is told when the same is asked in wordings that nothing was trained or chosen on, or when the answer is begun?",
    wording_parts,
    claims=("other_words", "refused"),
    combined=any_of_families,
)


def _wordings_part(
    subject: Subject,
    way: Way,
    name: str,
    wordings: Sequence[Wording],
    asked: Mapping[str, Sequence[Example]],
    material: Material,
    budget: WordingBudget,
    seed: int,
) -> Part:
    attack = replace(budget.asking, max_new_tokens=answer_tokens(subject, way, budget.asking.max_new_tokens), seed=seed)

    def run() -> list[Reading]:
        answer, readings = answers_of(subject, way), []
        for set_name, of_set in asked.items():
            outcomes = ask_otherwise(answer, of_set, wordings, material, attack, guarded=way.guarded)
            readings += wording_readings(set_name, outcomes, way.measures if set_name == FORGET else RAW_MEASURES)
        return readings

    about = {
        "attack": asdict(attack),
        "wordings": [asdict(wording) for wording in wordings],
        "rows": {set_name: rows_identity(of_set) for set_name, of_set in asked.items()},
        "material": [rows_identity(material.benign), rows_identity(material.forgotten)],
    }
    turns = sum(max(1, [step.role for step in wording.steps].count("user")) for wording in wordings)
    cost = answering_cost(turns * sum(map(len, asked.values())), attack.max_new_tokens)
    return Part(f"{way.name}, {name}", about, cost, run, way.claim, way.guarded)


def _prefill_part(subject: Subject, way: Way, asked: Mapping[str, Sequence[Example]], budget: Prefill) -> Part:
    attack = replace(budget, max_new_tokens=answer_tokens(subject, way, budget.max_new_tokens))

    def run() -> list[Reading]:
        answer, readings = answers_of(subject, way), []
        for name, of_set in asked.items():
            measures = way.measures if name == FORGET else RAW_MEASURES
            readings += prefilled(answer, subject.template, name, of_set, attack, measures)
        return readings

    about = {"attack": asdict(attack), "rows": {name: rows_identity(of_set) for name, of_set in asked.items()}}
    cost = answering_cost(len(attack.lengths) * sum(map(len, asked.values())), attack.max_new_tokens)
    return Part(f"{way.name}, first tokens", about, cost, run, way.claim, way.guarded)
