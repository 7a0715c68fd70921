"""What an audit is made of: models under attack, rows, and for each attack the parts that it is done in.

A part is what is kept, resumed and counted: it is done once, whatever happens in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Literal

from transformers import PreTrainedModel

from d2unlearn.attacks.reading import AskedRows, NotShownError, Reading, group_labels
from d2unlearn.audit.claims import FORGET, NEVER_SEEN, Claim
from d2unlearn.data.batching import truncate
from d2unlearn.data.template import Template
from d2unlearn.gate.gate import EnergyGate
from d2unlearn.generation.guarded import GuardedModel
from d2unlearn.guards.base import GuardThreshold, RefusesPrompts
from d2unlearn.models import context_length
from d2unlearn.schema import Example

Level = Literal["quick", "thorough", "exhaustive"]
ANSWER_TOKENS = 64
"""What is longer cannot be told whole. Attacks that ask for answers ask for so many tokens."""
LEVELS: tuple[Level, ...] = ("quick", "thorough", "exhaustive")
SubjectName = Literal["artifact", "original", "oracle"]


@dataclass(frozen=True)
class AuditRows:
    """The rows of an audit, by what they are. Empty where none were given."""

    forget: Sequence[Example]
    retain: Sequence[Example]
    near: Sequence[Example] = ()
    paraphrased: Sequence[Example] = ()
    never_seen: Sequence[Example] = ()


@dataclass(frozen=True)
class Subject:
    """A model under attack. `weights`: their hash; `original`: the model before unlearning, for attacks that need it.

    An attack leaves the model as it found it. `batch_size`: rows at once. `reader`: a hash of what else readings depend on: the
    tokenizer, the chat template, the configuration. `guard`: of untouched weights, in a gate's place.
    """

    name: SubjectName
    guarded: GuardedModel
    weights: str
    original: Callable[[], PreTrainedModel] | None = None
    batch_size: int = 32
    reader: str = ""
    guard: RefusesPrompts | None = None

    @property
    def model(self) -> PreTrainedModel:
        return self.guarded.model

    @property
    def gate(self) -> EnergyGate | GuardThreshold | None:
        """What refuses: a gate, or a guard; None where nothing does."""
        return self.guarded.gate if self.guard is None else self.guard.gate

    @cached_property
    def template(self) -> Template:
        return Template(self.guarded.tokenizer)

    def rendered(self, name: str, rows: Sequence[Example]) -> AskedRows:
        """Rows as this model reads them, cut at its context."""
        limit = context_length(self.model)
        tokens = [self.template.tokens(row) for row in rows]
        return AskedRows(name, tuple(truncate(row, limit) if limit else row for row in tokens), group_labels(rows))

    def needs_original(self) -> PreTrainedModel:
        """Raises `NotShownError` where there is none."""
        if self.original is None:
            raise NotShownError("it needs the model before unlearning (--original)")
        return self.original()


@dataclass(frozen=True)
class Cost:
    """What a part takes, in rows: trained on, scored, and answered in at most `ANSWER_TOKENS` tokens."""

    trained: int = 0
    scored: int = 0
    answered: int = 0


@dataclass(frozen=True)
class Part:
    """A piece of an attack on one model. `about`: all that its readings depend on beside the model and the seed.

    `guarded`: whether answers are the gate's (then they depend on it); `claim`: what it counts for, None: it judges nothing.
    """

    name: str
    about: object
    cost: Cost
    run: Callable[[], Sequence[Reading]]
    claim: Claim | None = None
    guarded: bool = False


@dataclass(frozen=True)
class AttackPlan:
    """An attack as the audit makes it. `title`: its heading; `shows`: one sentence, what is seen in it.

    `claims`: what its parts may count for: while it is left out, none of these can hold. `subjects`: the models that it is made
    on. `parts`: for a subject, its rows, the level and the seed; raises
    `NotShownError` where the attack cannot be made. `uses_original`: whether readings depend on the original's weights too.
    `then`: further parts, made once all of these are done, from what they read of the artifact (say, at the rate that was worst
    for it). `unmade`: what of it these rows do not allow at a level, each in a sentence. `combined`: readings made of those of
    one subject, one claim and one way to answer (told in *any* wording).
    """

    name: str
    title: str
    shows: str
    parts: Callable[[Subject, AuditRows, Level, int], Iterable[Part]]
    claims: tuple[Claim, ...] = ()
    subjects: tuple[SubjectName, ...] = ("artifact", "original", "oracle")
    uses_original: bool = False
    then: Callable[[Subject, AuditRows, Level, int, Sequence[Reading]], Iterable[Part]] | None = None
    combined: Callable[[Sequence[Reading]], Sequence[Reading]] | None = None
    unmade: Callable[[AuditRows, Level, int], Sequence[str]] | None = None


def drawn(rows: Sequence[Example], limit: int | None, seed: int) -> list[Example]:
    """At most so many rows, drawn by the seed, in their order; None: all."""
    if limit is None or limit >= len(rows):
        return list(rows)
    return [rows[index] for index in sorted(Random(seed).sample(range(len(rows)), limit))]


def asked_sets(subject: Subject, rows: AuditRows, limit: int | None, seed: int) -> list[AskedRows]:
    """The forget rows, and the never-seen ones where there are any, rendered."""
    sets = {FORGET: rows.forget, NEVER_SEEN: rows.never_seen}
    return [subject.rendered(name, drawn(of_set, limit, seed)) for name, of_set in sets.items() if of_set]
