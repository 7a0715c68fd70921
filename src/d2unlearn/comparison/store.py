"""Where a comparison's runs stand: results that are kept, work that is under way, and who does what.

RESULTS/SPLIT/ENTRY/tune.json, seed-N.json      a record a run, written when it is done; what tables are made of
OUTPUT/work/SPLIT/ENTRY/...                     half-done work; goes when the run is done
OUTPUT/answers/SPLIT/ENTRY/seed-N/              every question with its answers, for the pages

A run is claimed by a lock on its work: released by the system when its process dies, so a run that was killed can be taken up
by any other process that shares the folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from d2unlearn.artifact import locked
from d2unlearn.comparison.plan import Run
from d2unlearn.comparison.records import RunResult, TuningResult
from d2unlearn.errors import ArtifactError
from d2unlearn.runtime import read_json, write_json
from d2unlearn.serialization import record_from_json, record_to_json

_Result = TypeVar("_Result", TuningResult, RunResult)
OTHERS = "results of other data, weights or settings: {}; give --force to do them again, or name another folder with --results"
LOCKS = "locks"


class ClaimedError(ArtifactError):
    """Another process is at work on the run."""


@dataclass(frozen=True)
class Store:
    """The folders of one comparison."""

    output: Path
    results: Path

    def path(self, run: Run) -> Path:
        """The file of a run's result."""
        return self.results / f"{run.key}.json"

    def work(self, run: Run) -> Path:
        return self.output / "work" / run.key

    def answers(self, key: str) -> Path:
        return self.output / "answers" / key

    def is_done(self, run: Run) -> bool:
        return self.path(run).is_file()

    def keep(self, result: TuningResult | RunResult) -> None:
        """Write a run's result, whole or not at all."""
        write_json(self.results / f"{result.key}.json", record_to_json(result, "result"))

    def tuning(self, run: Run) -> TuningResult:
        """The result of a tuning. Raises `DataError` for a file that holds something else."""
        return _read(self.path(run), TuningResult)

    def result(self, run: Run) -> TuningResult | RunResult:
        """The result of any run. Raises `DataError` for a file that holds something else."""
        return self.tuning(run) if run.seed is None else _read(self.path(run), RunResult)

    @contextmanager
    def claim(self, run: Run) -> Iterator[None]:
        """Keep a run for this process. Of several ranks the first claims for all. Raises `ClaimedError` when it is taken."""
        path = self.output / LOCKS / f"{run.key.replace('/', '+')}.lock"
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


def is_comparison(output: Path) -> bool:
    """Whether a folder has what a comparison leaves; those of earlier versions have no manifest."""
    runs = (path for name in ("results", "answers", "work") for path in output.glob(f"{name}/*/*/*"))
    return (output / LOCKS).is_dir() or next(runs, None) is not None


def read_results(results: Path) -> tuple[list[RunResult], list[TuningResult]]:
    """Every kept result. Raises `DataError` for a file that holds something else."""
    runs = [_read(path, RunResult) for path in sorted(results.glob("*/*/seed-*.json"))]
    return runs, [_read(path, TuningResult) for path in sorted(results.glob("*/*/tune.json"))]


def _read(path: Path, kind: type[_Result]) -> _Result:
    advice = "remove it, so that the run is done again"
    return record_from_json(kind, read_json(path), str(path), "a comparison's result", advice)
