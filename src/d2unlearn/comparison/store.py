"""Where a comparison's runs stand: results that are kept, work that is under way, and who does what.

RESULTS/SPLIT/CONTESTANT/tune.json, seed-N.json      a record a run, written when it is done; what tables are made of
OUTPUT/work/SPLIT/CONTESTANT/...                     half-done work and logs; goes when the run is done
OUTPUT/answers/SPLIT/CONTESTANT/seed-N/              every question with its answers, for the pages

A run is claimed by a lock on its work: released by the system when its process dies, so a run that was killed can be taken up
by any other process that shares the folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from d2unlearn.artifact import locked
from d2unlearn.comparison.plan import Run
from d2unlearn.comparison.records import Judged, Tuned
from d2unlearn.errors import ArtifactError
from d2unlearn.runtime import atomic_write, read_json
from d2unlearn.serialization import record_from_json, record_to_json

R = TypeVar("R", Tuned, Judged)
ADVICE = "remove it, so that the run is done again"
OTHERS = "results of other data, weights or settings: {}; remove them, or name another folder with --results"


class ClaimedError(ArtifactError):
    """Another process is at work on the run."""


@dataclass(frozen=True)
class Store:
    """The folders of one comparison."""

    output: Path
    results: Path

    def result(self, run: Run) -> Path:
        return self.results / f"{run.key}.json"

    def work(self, run: Run) -> Path:
        return self.output / "work" / run.key

    def log(self, run: Run) -> Path:
        return self.output / "logs" / f"{run.key}.txt"

    def answers(self, key: str) -> Path:
        return self.output / "answers" / key

    def is_done(self, run: Run) -> bool:
        return self.result(run).is_file()

    def keep(self, record: Tuned | Judged) -> None:
        """Write a run's record, whole or not at all."""
        atomic_write(self.results / f"{record.key}.json", written(record_to_json(record, "result")) + "\n")

    def tuned(self, run: Run) -> Tuned:
        """The record of a tuning. Raises `DataError` for a file that holds something else."""
        return read_result(self.result(run), Tuned)

    def judged(self, run: Run) -> Judged:
        """The record of a judgement. Raises `DataError` for a file that holds something else."""
        return read_result(self.result(run), Judged)

    def record(self, run: Run) -> Tuned | Judged:
        """Either. Raises `DataError` for a file that holds something else."""
        return self.tuned(run) if run.seed is None else self.judged(run)

    @contextmanager
    def claim(self, run: Run) -> Iterator[None]:
        """Keep a run for this process. Of several ranks the first claims for all. Raises `ClaimedError` when it is taken."""
        path = self.output / "locks" / f"{run.key.replace('/', '+')}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path, ClaimedError(f"another process is at work on {run.key}")):
            yield

    def is_claimed(self, run: Run) -> bool:
        """Whether some process is at work on it."""
        try:
            with self.claim(run):
                return False
        except ClaimedError:
            return True


def read_result(path: Path, kind: type[R]) -> R:
    """A kept record. Raises `DataError` for a file that holds something else."""
    return record_from_json(kind, read_json(path), str(path), "a comparison's result", ADVICE)


def written(value: Any, indent: int = 0) -> str:
    """JSON to read and to compare line by line: what holds no mapping or list but numbers and texts stands on one line."""
    if not isinstance(value, (dict, list)) or not value or _flat(value):
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    pad = " " * (indent + 1)
    if isinstance(value, Mapping):
        parts = [f"{json.dumps(key, ensure_ascii=False)}: {written(item, indent + 1)}" for key, item in value.items()]
        return "{\n" + ",\n".join(pad + part for part in parts) + f"\n{' ' * indent}}}"
    return "[\n" + ",\n".join(pad + written(item, indent + 1) for item in value) + f"\n{' ' * indent}]"


def _flat(value: dict[str, Any] | list[Any]) -> bool:
    items = value.values() if isinstance(value, dict) else value
    return not any(isinstance(item, (dict, list)) and item for item in items)
