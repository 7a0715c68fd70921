"""How much of membership an audit makes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from d2unlearn.attacks.membership import MembershipAttack, membership_readings
from d2unlearn.attacks.reading import Reading
from d2unlearn.audit.claims import FORGET, NEVER_SEEN
from d2unlearn.audit.parts import AttackPlan, AuditRows, Cost, Level, Part, Subject, drawn
from d2unlearn.data.records import content_hash
from d2unlearn.schema import Example


@dataclass(frozen=True)
class MembershipBudget:
    """How many rows of each set are scored; None: all."""

    rows: int | None
    attack: MembershipAttack = field(default_factory=MembershipAttack)


BUDGETS: Mapping[Level, MembershipBudget] = {
    "quick": MembershipBudget(100),
    "thorough": MembershipBudget(None),
    "exhaustive": MembershipBudget(None),
}


def membership_parts(subject: Subject, rows: AuditRows, level: Level, seed: int) -> Iterator[Part]:
    """A part for the forgotten rows and, where there are any, one for those never seen."""
    budget = BUDGETS[level]
    for name, of_set in {FORGET: rows.forget, NEVER_SEEN: rows.never_seen}.items():
        scored = drawn(of_set, budget.rows, seed)
        if not scored:
            continue

        def run(name: str = name, scored: Sequence[Example] = scored) -> list[Reading]:
            asked = subject.rendered(name, scored)
            answers = [row.answer for row in scored]
            return membership_readings(subject.model, asked, answers, budget.attack, batch_size=subject.batch_size)

        about = [name, asdict(budget.attack), [content_hash(row) for row in scored]]
        yield Part(f"scores, {name}", about, Cost(scored=len(scored)), run)


PLAN = AttackPlan(
    name="membership",
    title="Membership",
    shows="Whether the model's scores of the forgotten rows tell that they were once seen, or that they were removed.",
    parts=membership_parts,
)
