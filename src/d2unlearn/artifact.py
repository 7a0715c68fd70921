"""The folder that comes out, and the one where it is made: a reader of `--output` never sees a half-written artifact.

OUTPUT            a Hugging Face model folder, `d2_manifest.json` (what was done) and, once calibrated, `d2_gate.json`
OUTPUT.partial    checkpoints, the stored reference and the staged artifact, until OUTPUT is complete
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from d2unlearn.errors import ArtifactError
from d2unlearn.outputs import FORCE_IT, check_replaceable, kept_settings, replace_folder
from d2unlearn.runtime import atomic_path, first_rank, now, read_json, remove, say, write_json
from d2unlearn.schema import GATE_FILE, MANIFEST_FILE
from d2unlearn.version import __version__

CHECKPOINTS = "checkpoints"
STAGED = "artifact"
_FORMAT = 1
DONE = "{} is done: same inputs, same settings"
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
"""What a file system says that has no locks."""
LIBRARIES = ("torch", "transformers", "accelerate", "peft", "datasets", "safetensors", "tokenizers", "numpy")


def is_done(output: Path, key: str, settings: Any) -> bool:
    """`holds_result`, said to the person where it is so. settings: a dataclass.

    Raises `ArtifactError` where the folder may not go as a whole, though its settings say `force`.
    """
    told, force = kept_settings(settings), _forced(settings)
    done = holds_result(output, key, told, force=force)
    if done:
        say(DONE.format(output))
    elif force and output.is_dir() and any(output.iterdir()):
        check_replaceable(output, read_json(output / MANIFEST_FILE).get("command"), told)
    return done


def _forced(settings: Any) -> bool:
    return bool(getattr(settings, "force", False))


@contextmanager
def new_result(output: Path, command: str, key: str, settings: Any, plugins: Mapping[str, str] | None = None) -> Iterator[Path]:
    """A folder to write a result to; with its manifest it takes the place of `output` when the block ends well.

    plugins: {distribution: version} of other packages whose code made the result.
    """
    further = {"plugins": plugins} if plugins else {}
    with atomic_path(output, put=replace_folder if _forced(settings) else None) as staged:
        yield staged
        write_json(staged / MANIFEST_FILE, manifest(command, key, settings=kept_settings(settings), **further))


def holds_result(output: Path, key: str, settings: Mapping[str, Any] | None = None, *, force: bool = False) -> bool:
    """Whether `output` holds the result of exactly this run.

    Raises `ArtifactError` when it holds something else, that of another run only without `force`. settings: this run's, to say
    in which the other one differs.
    """
    if not output.exists():
        return False
    if not output.is_dir() or (any(output.iterdir()) and not (output / MANIFEST_FILE).is_file()):
        raise ArtifactError(f"{output} exists and is not an artifact; choose another --output")
    if not any(output.iterdir()):
        return False
    made = read_json(output / MANIFEST_FILE)
    if made.get("key") == key:
        return True
    if force:
        return False
    differing = _differing(made.get("settings", {}), settings or {})
    raise ArtifactError(f"{output} holds the result of other inputs or settings{differing}; {FORCE_IT}")


def _differing(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """` (epochs: 10 there, 20 here)`; empty where no setting differs: then the content of a file does, or the version."""
    pairs = [(name, there[name], value) for name, value in here.items() if name != "output" and name in there]
    told = [f"{name}: {old} there, {new} here" for name, old, new in pairs if old != new]
    return f" ({'; '.join(told)})" if told else ""


def check_no_artifact(folder: Path) -> None:
    """Raises `ArtifactError` for the folder of an artifact: its manifest and gate would tell of weights that are not there."""
    if (folder / MANIFEST_FILE).is_file() or (folder / GATE_FILE).is_file():
        raise ArtifactError(f"{folder} holds an artifact with a manifest or a gate; save to another folder, or remove it first")


@contextmanager
def workspace_of(output: Path, key: str, *, force: bool = False) -> Iterator[Path]:
    """The folder to work in, while the block runs; one that an interrupted run with the same key left is taken up again.

    When the block fails, the half-made artifact goes, and so does the folder unless a checkpoint to go on from is in it. Raises
    `ArtifactError` when another process works there, or when checkpoints of another run are in it that `force` does not let go.
    """
    workspace = _workspace(output)
    if output.is_dir() and os.path.ismount(output):
        raise ArtifactError(f"{output} is a mount point, which cannot be put in place in one step; name a folder inside it")
    try:
        workspace.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(f"cannot write {output}: {error.strerror}") from error
    at_work = ArtifactError(f"another process is at work in {workspace}; wait for it, or choose another --output")
    with locked(workspace / "lock", at_work):
        note = workspace / "run.json"
        if _has_checkpoint(workspace) and not (note.is_file() and read_json(note).get("key") == key):
            if not force:
                raise ArtifactError(
                    f"{workspace} belongs to an interrupted run with other inputs or settings; go on with those, {FORCE_IT}"
                )
            remove(workspace / CHECKPOINTS)
        write_json(note, {"key": key})
        try:
            yield workspace
        except Exception:
            if first_rank():
                remove(workspace / STAGED)
                if not _has_checkpoint(workspace):
                    remove(workspace)
            raise


def publish(staged: Path, output: Path, *, force: bool = False) -> None:
    """Put the staged artifact in its place in one step, then remove the workspace. force: another one may be there."""
    output = output.resolve()
    mode = (staged / MANIFEST_FILE).stat().st_mode
    for weights in staged.rglob("*.safetensors"):
        weights.chmod(mode)  # written readable by their owner alone, unlike everything beside them
    if force:
        replace_folder(staged, output)
    else:
        if output.is_dir():
            output.rmdir()  # empty: `holds_result` has looked
        os.replace(staged, output)
    clear(output)


def clear(output: Path) -> None:
    """Remove the workspace, which a run that was killed after its artifact was in place has left."""
    remove(_workspace(output))


def _workspace(output: Path) -> Path:
    output = output.resolve()
    return output.with_name(f"{output.name}.partial")


def _has_checkpoint(workspace: Path) -> bool:
    return any((workspace / CHECKPOINTS).glob("checkpoint-*"))


@contextmanager
def locked(file: Path, taken: ArtifactError) -> Iterator[None]:
    """Keep other processes out of what `file` stands for; raises `taken` at once when one is in there.

    Of several ranks the first locks for all. The lock dies with its process; where a file system has no locks there is none.
    """
    lock = FileLock(file)
    if first_rank():
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise taken from None
        except NotImplementedError:
            pass
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise ArtifactError(f"cannot lock {file}: {error.strerror}") from error
    try:
        yield
    finally:
        lock.release()


def manifest(command: str, key: str, **sections: Any) -> dict[str, Any]:
    """The manifest's common part, with the date, and the given sections."""
    return {"format": _FORMAT, "command": command, "key": key, "made": now(), "versions": versions(), **sections}


def versions() -> dict[str, str]:
    """This package's version and those of the libraries that results depend on."""
    return {"d2unlearn": __version__, **{name: version(name) for name in LIBRARIES}}


def read_manifest(folder: Path) -> Mapping[str, Any] | None:
    """An artifact's manifest; None for a model folder that this package did not write."""
    path = folder / MANIFEST_FILE
    return read_json(path) if path.is_file() else None
