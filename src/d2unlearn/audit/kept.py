"""What was read of each part, on disk, so that an audit which was killed goes on where it was.

A part is kept in the cache, under the hash of all that it depends on, so that original and oracle are attacked once for all
artifacts, and nothing twice for another level or choice of attacks. Where texts are kept, of the artifact alone, it stands
beside the output instead, until the audit is done. Groups are kept as numbers: what they are called may be what was to be
forgotten, and the cache outlives an audit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from d2unlearn.attacks.reading import Reading, group_labels
from d2unlearn.audit.claims import FORGET
from d2unlearn.audit.parts import AttackPlan, AuditRows, Part, Subject
from d2unlearn.audit.summary import Readings
from d2unlearn.runtime import cache_dir, fingerprint, read_json, write_json
from d2unlearn.serialization import record_from_json, record_to_json
from d2unlearn.version import __version__

_FORMAT = 1


Label = tuple[str, str, str]
"""The set that a row belongs to, its id and its group."""


def labels_of(rows: AuditRows) -> frozenset[Label]:
    """Of all rows of an audit. Paraphrased rows are read as forget rows too."""
    sets = {**vars(rows), FORGET: [*rows.forget, *rows.paraphrased]}
    return frozenset(
        (name, row.example_id, group)
        for name, of_set in sets.items()
        for row, group in zip(of_set, group_labels(of_set), strict=True)
    )


class PlannedPart(NamedTuple):
    """A part, with the attack and the model that it is of."""

    plan: AttackPlan
    subject: Subject
    part: Part


@dataclass(frozen=True)
class KeptParts:
    """Parts by what they depend on. original: hash of the original's weights; `texts`: whether what told something is kept.

    labels: (set, row's id, its group) of all rows of this audit. A part that was kept of the same texts under other ids or in
    other groups is made again: rows are paired and drawn by these.
    """

    workspace: Path
    original: str
    dtype: str
    seed: int
    texts: bool
    labels: frozenset[Label]

    def read(self, planned: PlannedPart) -> Readings | None:
        """What was kept of the part; None where nothing was. Raises `DataError` for a damaged file."""
        file = self._file(planned)
        if not file.is_file():
            return None
        kept = record_from_json(Readings, read_json(file), str(file), "a part of an audit", "remove it")
        ours = [self._named(reading) for reading in kept.readings]
        if None in ours:
            return None
        readings = tuple(reading for reading in ours if reading is not None)
        return replace(kept, subject=planned.subject.name, claim=planned.part.claim, readings=readings)

    def keep(self, planned: PlannedPart, readings: Sequence[Reading]) -> Readings:
        """Write what the part read, and give it back as it will be read."""
        plan, subject, part = planned
        texts = self.texts and subject.name == "artifact"
        made = tuple(_that_told(reading) if texts else replace(reading, texts=()) for reading in readings)
        kept = Readings(plan.name, subject.name, part.claim, part.guarded, made)
        file = self._file(planned)
        file.parent.mkdir(parents=True, exist_ok=True)
        numbered = tuple(self._numbered(reading) for reading in kept.readings)
        write_json(file, record_to_json(replace(kept, readings=numbered), "part"))
        return kept

    @cached_property
    def _groups(self) -> Mapping[str, Mapping[str, str]]:
        """By set the group of each row."""
        found: dict[str, dict[str, str]] = {}
        for name, row_id, group in self.labels:
            found.setdefault(name, {})[row_id] = group
        return found

    def _numbered(self, reading: Reading) -> Reading:
        """With numbers for the names of groups, of the sets that this audit was given."""
        if reading.rows not in self._groups:
            return reading
        numbers = {group: str(number) for number, group in enumerate(dict.fromkeys(reading.groups))}
        return replace(reading, groups=tuple(numbers[group] for group in reading.groups))

    def _named(self, reading: Reading) -> Reading | None:
        """With this audit's names of groups; None where a row is not among its rows, or others belong together."""
        ours = self._groups.get(reading.rows)
        if ours is None:
            return reading
        groups = tuple(ours.get(row_id, "") for row_id in reading.row_ids)
        pairs = set(zip(reading.groups, groups, strict=True))
        known = all(row_id in ours for row_id in reading.row_ids)
        alike = len({theirs for theirs, _ in pairs}) == len(pairs) == len({own for _, own in pairs})
        return replace(reading, groups=groups) if known and alike else None

    def _file(self, planned: PlannedPart) -> Path:
        plan, subject, part = planned
        gate = subject.gate if part.guarded else None
        about = {
            "format": [_FORMAT, __version__],
            "part": [plan.name, part.name, part.about, self.seed],
            "model": [
                subject.weights,
                subject.reader,
                subject.batch_size,
                self.dtype,
                None if gate is None else gate.fingerprint,
            ],
            "original": self.original if plan.uses_original else None,
            "texts": self.texts and subject.name == "artifact",
        }
        folder = self.workspace / "parts" if about["texts"] else cache_dir() / "audit"
        return folder / f"{fingerprint(about)}.json"


def _that_told(reading: Reading) -> Reading:
    """With the texts of rows that were told alone: what told nothing is of no use to a reader."""
    told = zip(reading.texts, reading.values, strict=True) if reading.texts and reading.measure == "told" else ()
    return replace(reading, texts=tuple(text if value == 1 else "" for text, value in told))
