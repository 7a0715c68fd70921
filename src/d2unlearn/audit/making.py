"""Making an audit's attacks: which parts there are, which are kept from before, and the readings of all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from d2unlearn.attacks.reading import NotShownError, Reading
from d2unlearn.audit.claims import Claim
from d2unlearn.audit.kept import KeptParts, PlannedPart
from d2unlearn.audit.parts import AttackPlan, AuditRows, Level, Part, Subject, SubjectName
from d2unlearn.audit.speed import fitting_threads, measured_speed, with_time_left
from d2unlearn.audit.summary import Readings
from d2unlearn.errors import D2Error
from d2unlearn.runtime import in_minutes, say


@dataclass
class Making:
    """The attacks of an audit on its models. `left_out`: those that could not be made on the artifact, with the reason."""

    plans: Sequence[AttackPlan]
    rows: AuditRows
    subjects: Mapping[SubjectName, Subject]
    level: Level
    seed: int
    kept: KeptParts
    left_out: dict[str, str] = field(default_factory=dict)

    def readings(self) -> list[Readings]:
        """Of every part, made or kept, and those that are made of several."""
        done = self._made("attacks", lambda plan, subject: plan.parts(subject, self.rows, self.level, self.seed))

        def then(plan: AttackPlan, subject: Subject) -> Iterable[Part]:
            return () if plan.then is None else plan.then(subject, self.rows, self.level, self.seed, _of_artifact(plan, done))

        done += self._made("attacks that follow from these", then)
        return done + [combined for plan in self.plans for combined in _combined(plan, done)]

    def _made(self, what: str, parts_of: Callable[[AttackPlan, Subject], Iterable[Part]]) -> list[Readings]:
        """The readings of these parts in their order, kept or made now, with how long that will take."""
        planned = self._listed(parts_of)
        kept = [self.kept.read(each) for each in planned]
        to_do = [each for each, readings in zip(planned, kept, strict=True) if readings is None]
        if not to_do:
            return [readings for readings in kept if readings is not None]
        with fitting_threads(self.subjects["artifact"], self.rows) as threads:
            speed = measured_speed(self.subjects["artifact"], self.rows)
            seconds = sum(speed.seconds(each.part) for each in to_do)
            kept_ones = f"{len(planned)} parts, {len(planned) - len(to_do)} of them kept from before"
            say(f"{what}: {kept_ones}; about {in_minutes(seconds)} to go, with {threads} thread{'s' * (threads != 1)}")
            made = self._read(with_time_left(to_do, speed, what))
            found = [next(made) if readings is None else readings for readings in kept]
        return [readings for readings in found if readings is not None]

    def _listed(self, parts_of: Callable[[AttackPlan, Subject], Iterable[Part]]) -> list[PlannedPart]:
        listed = []
        for plan in self.plans:
            for subject in (self.subjects[name] for name in plan.subjects if name in self.subjects):
                if plan.name not in self.left_out:
                    try:
                        listed += [PlannedPart(plan, subject, part) for part in parts_of(plan, subject)]
                    except (NotShownError, D2Error) as reason:
                        self._leave_out(plan, subject, reason)
        return listed

    def _read(self, to_do: Iterable[PlannedPart]) -> Iterator[Readings | None]:
        """Of each part in turn; None where it could not be made."""
        for planned in to_do:
            try:
                readings = planned.part.run()
            except (NotShownError, D2Error, torch.OutOfMemoryError, torch.linalg.LinAlgError) as reason:  # type: ignore[attr-defined]
                self._leave_out(planned.plan, planned.subject, reason)
                yield None
            else:
                yield self.kept.keep(planned, readings)

    def _leave_out(self, plan: AttackPlan, subject: Subject, reason: Exception) -> None:
        say(f"{plan.title}, {subject.name}: not shown, {reason}")
        self.left_out.setdefault(plan.name, f"{subject.name}: {reason}")


def _of_artifact(plan: AttackPlan, done: Sequence[Readings]) -> list[Reading]:
    ours = [each for each in done if (each.attack, each.subject) == (plan.name, "artifact")]
    return [reading for each in ours for reading in each.readings]


def _combined(plan: AttackPlan, done: Sequence[Readings]) -> Iterator[Readings]:
    """What the plan makes of the readings of one model, one claim and one way to answer."""
    if plan.combined is None:
        return
    together: dict[tuple[str, Claim | None, bool], list[Reading]] = {}
    for each in done:
        if each.attack == plan.name:
            together.setdefault((each.subject, each.claim, each.guarded), []).extend(each.readings)
    for (subject, claim, guarded), readings in together.items():
        yield Readings(plan.name, subject, claim, guarded, tuple(plan.combined(readings)))
