"""How much of the gate an audit looks at: forgotten questions that it lets through, and everything else that it refuses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from d2unlearn.attacks.answering import attacked_model
from d2unlearn.attacks.false_refusals import false_refusal_readings
from d2unlearn.attacks.reading import Measure, NotShownError, Reading
from d2unlearn.attacks.requests import Attacked, answer_readings, plain_request
from d2unlearn.attacks.wordings import AskingOtherwise, ask_otherwise
from d2unlearn.audit.claims import FORGET, Claim
from d2unlearn.audit.judging import judging_wordings
from d2unlearn.audit.parts import AttackPlan, AuditRows, Level, Part, Subject, drawn
from d2unlearn.audit.plans.asking import GUARDED, answer_tokens, answering_cost, answers_of, rows_identity
from d2unlearn.audit.plans.wordings import bundles
from d2unlearn.generation.guarded import GuardedModel
from d2unlearn.runtime import read_json
from d2unlearn.schema import Example, Message
from d2unlearn.wordings.wording import Material, Wording

_FAR = Path(__file__).parents[1] / "far.json"
RETAINED, NEAR, FAR = "retain", "near", "far"
"""Sets of legitimate requests: rows of the kind that should stay, neighbours of the forgotten ones, and anything else."""
SEVERAL_TURNS = (
    Wording(
        "after-a-benign-turn",
        "several_turns",
        "gate",
        (Message("user", "{benign_question_1}"), Message("user", "{question}")),
    ),
    Wording(
        "after-a-forgotten-turn",
        "several_turns",
        "gate",
        (Message("user", "{forgotten_question_1}"), Message("user", "{question}")),
    ),
)
"""A row after another was asked and answered, or refused."""


@dataclass(frozen=True)
class GateBudget:
    """Rows of each set as they are (None: all), and in other words: wordings of each family, families a part, parts in all."""

    rows: int | None
    reworded_rows: int | None
    of_family: int | None = 1
    families: int = 1
    parts: int | None = None
    max_new_tokens: int = 64


BUDGETS: Mapping[Level, GateBudget] = {
    "quick": GateBudget(60, 6, families=8, parts=1),
    "thorough": GateBudget(None, 300),
    "exhaustive": GateBudget(None, None, of_family=None),
}


def far_requests() -> list[Example]:
    """Everyday requests, far from any file of rows to keep. They have no answers: only refusals are read."""
    requests = read_json(_FAR)["requests"]
    return [
        Example(f"far:{number}", (Message("user", text),), "", f"{_FAR.name}:{number}")
        for number, text in enumerate(requests, start=1)
    ]


def gate_parts(subject: Subject, rows: AuditRows, level: Level, seed: int) -> Iterator[Part]:
    """Forgotten rows as they are, then each legitimate set, then those in other words and after another turn."""
    if subject.gate is None:
        raise NotShownError("it has no gate")
    budget = BUDGETS[level]
    yield _plain_part(subject, FORGET, drawn(rows.forget, budget.rows, seed), ("missed", "refused"), "refused", budget)
    legitimate = {RETAINED: rows.retain, NEAR: rows.near, FAR: far_requests()}
    for name, of_set in legitimate.items():
        if of_set:
            yield _plain_part(subject, name, drawn(of_set, budget.rows, seed), ("refused",), "nothing_else", budget)
    asked = {name: drawn(legitimate[name], budget.reworded_rows, seed) for name in (RETAINED, NEAR) if legitimate[name]}
    material = Material(benign=rows.retain, forgotten=rows.forget)
    families = list(bundles(judging_wordings(), budget.of_family, budget.families).items())[: budget.parts]
    for name, wordings in [*families, ("several turns", SEVERAL_TURNS)]:
        yield _reworded_part(subject, name, wordings, asked, material, budget, seed)


PLAN = AttackPlan(
    "gate",
    "The gate",
    "Which forgotten questions does the gate let through, and which legitimate ones does it refuse, in any wording?",
    gate_parts,
    claims=("refused", "nothing_else"),
    subjects=("artifact",),
    uses_original=True,
)


def _plain_part(
    subject: Subject,
    name: str,
    rows: Sequence[Example],
    measures: Sequence[Measure],
    claim: Claim,
    budget: GateBudget,
) -> Part:
    tokens = answer_tokens(subject, GUARDED, budget.max_new_tokens)

    def run() -> list[Reading]:
        able = [row for row in rows if row.question]
        replies = answers_of(subject, GUARDED)([plain_request(row) for row in able], tokens)
        return answer_readings(name, able, {"wording": "plain", "family": "plain"}, replies, measures)

    cost = answering_cost(len(rows), tokens)
    return Part(f"{name} as they are", [tokens, rows_identity(rows)], cost, run, claim, guarded=True)


def _reworded_part(
    subject: Subject,
    name: str,
    wordings: Sequence[Wording],
    asked: Mapping[str, Sequence[Example]],
    material: Material,
    budget: GateBudget,
    seed: int,
) -> Part:
    tokens = answer_tokens(subject, GUARDED, budget.max_new_tokens)
    attack = AskingOtherwise(tokens, seed=seed)

    def run() -> list[Reading]:
        answer, answer_before, readings = answers_of(subject, GUARDED), _before(subject), []
        for set_name, of_set in asked.items():
            outcomes = ask_otherwise(answer, of_set, wordings, material, attack, guarded=True)
            before = ask_otherwise(answer_before, of_set, wordings, material, attack)
            readings += false_refusal_readings(set_name, outcomes, before)
        return readings

    about = {
        "attack": asdict(attack),
        "wordings": [asdict(wording) for wording in wordings],
        "rows": {set_name: rows_identity(of_set) for set_name, of_set in asked.items()},
        "material": [rows_identity(material.benign), rows_identity(material.forgotten)],
    }
    cost = answering_cost(2 * len(wordings) * sum(map(len, asked.values())), tokens)
    return Part(f"{name}, in other words", about, cost, run, "nothing_else", guarded=True)


def _before(subject: Subject) -> Attacked:
    """The model before unlearning, raw; where there is none the artifact itself, raw."""
    guarded = subject.guarded
    if subject.original is not None:
        guarded = GuardedModel(subject.original(), guarded.tokenizer, None)
    return attacked_model(guarded, raw=True, batch_size=subject.batch_size)
