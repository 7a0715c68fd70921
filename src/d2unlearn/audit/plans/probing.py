"""How much of linear probing an audit makes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from d2unlearn.attacks.probing import (
    FEWEST_GROUPS,
    LinearProbes,
    WrongAnswers,
    answer_choices,
    first_half,
    own_answers,
    probe_readings,
)
from d2unlearn.attacks.reading import NotShownError, Reading, group_labels
from d2unlearn.audit.claims import FORGET, NEVER_SEEN
from d2unlearn.audit.parts import AttackPlan, AuditRows, Cost, Level, Part, Subject, drawn
from d2unlearn.data.records import content_hash
from d2unlearn.schema import Example


@dataclass(frozen=True)
class ProbingBudget:
    """rows: how many of each set are read, at most; half of them teach a probe, the others ask it, and the other way round.
    control: whether the control task is made too.
    """

    rows: int
    control: bool = True
    probes: LinearProbes = field(default_factory=LinearProbes)


BUDGETS: Mapping[Level, ProbingBudget] = {
    "quick": ProbingBudget(400, control=False),
    "thorough": ProbingBudget(1000),
    "exhaustive": ProbingBudget(2000),
}


def probing_parts(subject: Subject, rows: AuditRows, level: Level, seed: int) -> Iterator[Part]:
    """A part for each kind of wrong answers that all rows have, and its control task, which judges nothing."""
    budget = BUDGETS[level]
    given = {FORGET: rows.forget, NEVER_SEEN: rows.never_seen}
    sets = {name: drawn([row for row in of_set if row.prompt], budget.rows, seed) for name, of_set in given.items()}
    if not sets[FORGET]:
        raise NotShownError("probes read the end of a prompt, and no forgotten row has one")
    first_half(group_labels(sets[FORGET]), seed=seed)
    if len(set(group_labels(sets[NEVER_SEEN]))) < FEWEST_GROUPS:
        del sets[NEVER_SEEN]
    sources: list[WrongAnswers] = ["of alike questions"]
    if all(own_answers(row)[1] for of_set in sets.values() for row in of_set):
        sources.append("its own")
    about = [asdict(budget.probes), {name: [_identity(row) for row in of_set] for name, of_set in sets.items()}]
    cost = Cost(scored=sum(map(len, sets.values())))
    for source in sources:
        for control in (False, True)[: 1 + budget.control]:

            def run(source: WrongAnswers = source, control: bool = control) -> list[Reading]:
                return _probed(subject, sets, source, budget.probes, control, seed)

            name = f"wrong answers {source}" + (", control" if control else "")
            yield Part(name, [source, control, *about], cost, run, None if control else "gone")


def _probed(
    subject: Subject,
    sets: Mapping[str, Sequence[Example]],
    source: WrongAnswers,
    probes: LinearProbes,
    control: bool,
    seed: int,
) -> list[Reading]:
    readings = []
    for name, of_set in sets.items():
        asked = subject.rendered(name, of_set)
        choices = answer_choices(of_set, asked.groups, source, probes, subject.template.text_ids, seed=seed)
        readings += probe_readings(
            subject.model, asked, choices, source, probes, control=control, seed=seed, batch_size=subject.batch_size
        )
    return readings


def _identity(row: Example) -> list[object]:
    """What a probe reads of a row, its group and its wrong answers among it."""
    return [content_hash(row), row.group, own_answers(row)]


PLAN = AttackPlan(
    name="probing",
    title="Linear probes",
    shows="Whether a linear probe of a layer, at the end of the prompt, tells the true answer from wrong ones.",
    parts=probing_parts,
    claims=("gone",),
)
