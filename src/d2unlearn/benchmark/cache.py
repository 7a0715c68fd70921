"""What an evaluation has found so far, on disk, so that one which was killed goes on where it was.

OUTPUT.partial holds one line of JSON a finding, appended and flushed batch by batch. A finding is kept under the hash of all it
depends on (weights, convention, code version, and the row itself), so a line is right for every run that asks for its key,
and of no use to others. A last line that was cut short is left out. The file goes when the result is in place.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from d2unlearn.errors import ArtifactError
from d2unlearn.runtime import remove


class Findings:
    """Key -> what was found (numbers, texts and lists of them), in memory and in a file. Use it as a context."""

    def __init__(self, output: Path, context: str) -> None:
        self._path = output.with_name(f"{output.name}.partial") / "findings.jsonl"
        self._context = context[:16]
        self._found: dict[str, Any] = {}
        self._file: IO[str] | None = None

    def __enter__(self) -> Findings:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines() if self._path.exists() else []
            self._file = self._path.open("a", encoding="utf-8")
            if lines and not self._path.read_bytes().endswith(b"\n"):
                self._file.write("\n")
        except OSError as error:
            raise ArtifactError(f"cannot write {self._path}: {error.strerror}") from error
        self._found = dict(entry for line in lines if (entry := _entry(line)) is not None)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __len__(self) -> int:
        return len(self._found)

    def get(self, key: str) -> Any:
        """What was found under a key, None for nothing."""
        return self._found.get(self._context + key)

    def keep(self, found: Iterable[tuple[str, Any]]) -> None:
        """Keep some findings; handed to the file system before this returns, so that they outlive the process."""
        entries = [(self._context + key, value) for key, value in found]
        if self._file is None:
            raise ArtifactError(f"{self._path} is not open")
        for entry in entries:
            self._file.write(json.dumps(entry) + "\n")
        self._file.flush()
        self._found.update(entries)

    def discard(self) -> None:
        """Remove the folder: the result is in place."""
        remove(self._path.parent)


def each_once(
    findings: Findings, keys: Sequence[str], compute: Callable[[list[int]], Iterator[list[tuple[int, object]]]]
) -> list[Any]:
    """What was found under each key. `compute` gives (index, value) for indices whose key is new, each key once, in parts;
    every part is kept at once.
    """
    first = {key: index for index, key in reversed(list(enumerate(keys))) if findings.get(key) is None}
    if first:
        for part in compute(sorted(first.values())):
            findings.keep([(keys[index], value) for index, value in part])
    return [findings.get(key) for key in keys]


def _entry(line: str) -> tuple[str, Any] | None:
    try:
        key, value = json.loads(line)
    except ValueError:
        return None
    return (key, value) if isinstance(key, str) else None
