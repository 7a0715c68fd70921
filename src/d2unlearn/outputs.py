"""What is written where the user says: links are followed, and what this command did not make of these inputs stays.

A folder says what made it in its `d2_manifest.json` (`d2unlearn.artifact`), a file in the manifest beside it, and a page in a
mark of its own, too, so that it can be drawn again from the same records.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from d2unlearn.errors import ArtifactError
from d2unlearn.runtime import check_writable, read_json, remove
from d2unlearn.schema import MANIFEST_FILE

WHOLE = ("unlearn", "evaluate", "analyze", "audit", "data make")
"""Commands whose folder holds nothing but what they made, and goes as a whole when `--force` replaces it."""
ANOTHER = "choose another --output"
FORCE_IT = f"give --force to replace it, or {ANOTHER}"
_HEAD = '<meta charset="utf-8">\n'
_MARK = '<meta name="generator" content="d2unlearn {}">\n'
_MARK_WITHIN = 1000
"""Characters of a page in which its mark stands."""
_LINKS = 40
"""As many links as Linux follows."""


def output_place(given: str | Path) -> Path:
    """Where an output goes: the end of its links, where the user named one.

    Raises `ArtifactError` for a device, a pipe or a socket, for links that lead nowhere, and where nothing can be written.
    """
    path = Path(given)
    for _ in range(_LINKS):
        if (path.exists() and not (path.is_file() or path.is_dir())) or path.parent.resolve().is_relative_to("/proc"):
            raise ArtifactError(f"{given} is not a regular file or folder (a device, pipe or socket); name another")
        if not path.is_symlink():
            break
        path = path.parent / path.readlink()
    else:
        raise ArtifactError(f"{given} is a link that leads back to itself; name another")
    check_writable(path)
    return path


def check_file(path: Path, *, made: bool, force: bool, inputs: Iterable[str | Path] = ()) -> None:
    """Raises `ArtifactError` unless a file may be written at `path`.

    made: the same command made what stands there, of the same inputs; force: it may be anything; but never one of `inputs`.
    """
    if path.is_dir():
        raise ArtifactError(f"--output {path} is a folder; name another file")
    if not path.exists():
        return
    if any(os.path.exists(file) and path.samefile(file) for file in inputs):
        raise ArtifactError(f"--output {path} is the input; name another file")
    if not (made or force) and path.stat().st_size:
        raise ArtifactError(f"{path} is there, and this command did not make it of these inputs; {FORCE_IT}")


def note_of(path: Path) -> Path:
    """The manifest beside a file."""
    return path.with_name(f"{path.name}.manifest.json")


def read_note(path: Path, command: str, *, force: bool) -> Mapping[str, Any]:
    """What the manifest beside a file says; empty for none. Raises `ArtifactError` for what `command` did not write there."""
    note = output_place(note_of(path))
    if not note.exists():
        return {}
    if note.is_dir():
        raise ArtifactError(f"{note} is a folder, where the manifest of {path.name} goes; {ANOTHER}")
    with suppress(ArtifactError):
        found = read_json(note)
        if found.get("command") == command:
            return found
    if not force:
        raise ArtifactError(
            f"{note} is there, where the manifest of {path.name} goes, and {command} did not write it; {FORCE_IT}"
        )
    return {}


def with_mark(page: str, mark: str) -> str:
    """A page with what it was made of in its head. mark: the command, and a fingerprint of the records."""
    return page.replace(_HEAD, _HEAD + _MARK.format(mark), 1)


def has_mark(path: Path, mark: str) -> bool:
    """Whether a page was made of just these records."""
    if not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        return _MARK.format(mark) in file.read(_MARK_WITHIN)


def kept_settings(settings: Any) -> dict[str, Any]:
    """A command's settings as its manifest keeps them: without `force`, which says nothing of what was made."""
    return {name: value for name, value in asdict(settings).items() if name != "force"}


def check_replaceable(output: Path, command: object, settings: Mapping[str, Any]) -> None:
    """Raises `ArtifactError` where `--force` would take with it what no command makes again: other files, or an input.

    command: what made the folder, by its manifest; settings: of the command that would replace it.
    """
    if command not in WHOLE:
        raise ArtifactError(f"{output} holds more than a command's result, and --force does not remove it; {ANOTHER}")
    below = next(iter(output.glob(f"*/**/{MANIFEST_FILE}")), None)
    if below is not None:
        raise ArtifactError(f"{output} holds another result, {below.parent}, and --force would remove it; {ANOTHER}")
    for given in _paths(value for name, value in settings.items() if name != "output"):
        if Path(given).exists() and Path(given).resolve().is_relative_to(output.resolve()):
            raise ArtifactError(f"{output} holds the input {given}, and --force would remove it; {ANOTHER}")


def replace_folder(made: Path, output: Path) -> None:
    """Put a folder in the place of another, which is removed; one that is moved back where that fails."""
    aside = output.with_name(f".{output.name}.{os.getpid()}.replaced")
    if output.is_dir():
        remove(aside)
        os.replace(output, aside)
    try:
        os.replace(made, output)
    except OSError:
        if aside.is_dir():
            os.replace(aside, output)
        raise
    remove(aside)


def _paths(values: Iterable[Any]) -> list[str]:
    """Every text in settings, which may name a file."""
    found: list[str] = []
    for value in values:
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, Mapping):
            found += _paths(value.values())
        elif isinstance(value, list | tuple):
            found += _paths(value)
    return [text for text in found if text and "\0" not in text and len(text) < 1000]
