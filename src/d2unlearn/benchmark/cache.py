"""The results of single requests to a model, on disk, so that an evaluation which was killed goes on where it was.

OUTPUT.partial holds one line of JSON a result, appended and flushed part by part. A result is kept under the hash of all it
depends on (weights, convention, code version, kind of request, and the request itself), so a line is right for every run that
asks for its key, and of no use to others. A last line that was cut short is left out. The file goes when the whole is in place.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol, TypeVar

from d2unlearn.errors import ArtifactError
from d2unlearn.runtime import fingerprint, remove


class Request(Protocol):
    """One thing to ask of a model. `key`: all that its result depends on beside the model, of what JSON has words for."""

    @property
    def key(self) -> object: ...


_Asked = TypeVar("_Asked", bound=Request)
_Compute = Callable[[list[_Asked]], Iterable[Iterable[tuple[_Asked, Any]]]]
"""Requests to (request, result) pairs, in any order, part by part; a result is of what JSON has words for."""


class ResultCache:
    """Results by request, in memory and in a file. Use it as a context."""

    def __init__(self, output: Path, context: str) -> None:
        """`context`: what all results depend on."""
        self._path = output.with_name(f"{output.name}.partial") / "results.jsonl"
        self._context = context
        self._results: dict[str, Any] = {}
        self._file: IO[str] | None = None

    def __enter__(self) -> ResultCache:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines() if self._path.exists() else []
            self._file = self._path.open("a", encoding="utf-8")
            if lines and not self._path.read_bytes().endswith(b"\n"):
                self._file.write("\n")
        except OSError as error:
            raise ArtifactError(f"cannot write {self._path}: {error.strerror}") from error
        self._results = dict(entry for line in lines if (entry := _entry(line)) is not None)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __len__(self) -> int:
        return len(self._results)

    def cached(self, kind: str, requests: Sequence[_Asked], compute: _Compute[_Asked]) -> list[Any]:
        """The result of each request. `compute` is given those without one, equal ones once; every part is kept at once."""
        keys = [self._key(kind, request) for request in requests]
        new = {key: request for key, request in zip(keys, requests, strict=True) if key not in self._results}
        for part in compute(list(new.values())) if new else ():
            self._keep([(self._key(kind, request), result) for request, result in part])
        return [self._results[key] for key in keys]

    def discard(self) -> None:
        """Remove the folder: the whole is in place."""
        remove(self._path.parent)

    def _key(self, kind: str, request: Request) -> str:
        return fingerprint([self._context, kind, request.key])

    def _keep(self, entries: Sequence[tuple[str, Any]]) -> None:
        """Handed to the file system before this returns, so that results outlive the process."""
        if self._file is None:
            raise ArtifactError(f"{self._path} is not open")
        self._file.writelines(json.dumps(entry) + "\n" for entry in entries)
        self._file.flush()
        self._results.update(entries)


def _entry(line: str) -> tuple[str, Any] | None:
    try:
        key, result = json.loads(line)
    except ValueError:
        return None
    return (key, result) if isinstance(key, str) else None
