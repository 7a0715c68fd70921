"""What was read of each part, on disk, so that an audit which was killed goes on where it was.

A part is kept in the cache, under the hash of all that it depends on, so that original and oracle are attacked once for all
artifacts, and nothing twice for another level or choice of attacks. Where texts are kept, of the artifact alone, it stands
beside the output instead, until the audit is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
        return replace(kept, subject=planned.subject.name, claim=planned.part.claim) if self._are_ours(kept) else None

    def keep(self, planned: PlannedPart, readings: Sequence[Reading]) -> Readings:
        """Write what the part read, and give it back as it will be read."""
        plan, subject, part = planned
        texts = self.texts and subject.name == "artifact"
        made = tuple(_that_told(reading) if texts else replace(reading, texts=()) for reading in readings)
        kept = Readings(plan.name, subject.name, part.claim, part.guarded, made)
        file = self._file(planned)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, record_to_json(kept, "part"))
        return kept

    def _are_ours(self, kept: Readings) -> bool:
        sets = {name for name, _, _ in self.labels}
        labels = {
            (reading.rows, row_id, group)
            for reading in kept.readings
            if reading.rows in sets
            for row_id, group in zip(reading.row_ids, reading.groups, strict=True)
        }
        return labels <= self.labels

    def _file(self, planned: PlannedPart) -> Path:
        plan, subject, part = planned
        gate = subject.guarded.gate if part.guarded else None
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
