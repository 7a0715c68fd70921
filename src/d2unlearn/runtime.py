"""Where things run and how files are written: one policy for device, dtype, seeds, hashes, atomic writes and progress."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import platform
import random
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from d2unlearn.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")
_MACHINE = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
"""Whose process ids those in the names of staged files are: several machines may share a folder."""

PATIENCE = 5.0
"""Seconds after which a person wants to know what is being done."""
QUIET_SECONDS = 30.0
"""Between two lines about long work where there is no terminal to draw a bar on."""


def pick_device(name: str = "auto") -> torch.device:
    """`auto` takes an accelerator where there is one, else the CPU; any other name is torch's own."""
    import torch

    if name != "auto":
        return torch.device(name)
    if torch.accelerator.is_available():
        return torch.accelerator.current_accelerator() or torch.device("cpu")
    return torch.device("cpu")


def torch_dtype(name: str) -> torch.dtype | None:
    """`float32`, `bfloat16` or `float16`; `auto` is None: the dtype that the weights were saved in."""
    import torch

    known = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise ConfigError([f"dtype {name!r} is not known; choose one of {', '.join(known)}"])
    return known[name]


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch. Library code draws from generators of its own; this covers what it calls."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the global state is what third-party code draws from
    torch.manual_seed(seed)


@contextmanager
def drawing_from(seed: int | None, device: torch.device | None = None) -> Iterator[None]:
    """Seed what torch draws from on the CPU and on `device` (None: not reproducibly); its generators come back as they were."""
    import torch

    devices = [] if device is None or device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type=devices[0].type if devices else "cuda"):
        torch.seed() if seed is None else torch.manual_seed(seed)
        yield


def cache_dir() -> Path:
    """Folder for what can be made again: `$D2UNLEARN_CACHE`, or the user's cache folder."""
    from platformdirs import user_cache_dir

    return Path(os.environ.get("D2UNLEARN_CACHE") or user_cache_dir("d2unlearn"))


def fingerprint(value: object) -> str:
    """sha256 of the value's canonical JSON; equal values give equal fingerprints on every machine."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def now() -> str:
    """The date and time, UTC, to the second: 2026-01-31T12:00:00+00:00."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def is_text(value: str) -> bool:
    """Whether a string is made of whole characters, so that it can be tokenised and written: no half of a surrogate pair."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def atomic_write(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old content or the new, and a failure leaves the old."""
    with atomic_path(path) as staged:
        staged.write_text(text, encoding="utf-8")


@contextmanager
def atomic_path(path: Path, put: Callable[[Path, Path], None] | None = None) -> Iterator[Path]:
    """A sibling path to write to; it takes the place of `path` when the block ends well, and is removed otherwise.

    put: how it takes that place, called with both; None: in one step, with nothing but a file or an empty folder there.
    What processes of this machine have left that were killed in such a block goes first.
    """
    staged = path.with_name(f".{path.name}.{_MACHINE}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{glob.escape(path.name)}.{_MACHINE}.*.partial"):
            if left == staged or not _is_running(left.name.split(".")[-2]):
                remove(left)
        yield staged
        (put or os.replace)(staged, path)
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            remove(staged)


def _is_running(process: str) -> bool:
    """Whether a process of this machine has that id; for what is no id, yes."""
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, ValueError, OverflowError):
        pass
    return True


def check_writable(path: Path) -> None:
    """Raises `ArtifactError` when `path` cannot be made or replaced: better said before hours of work than after."""
    if path.name in ("", ".."):
        raise ArtifactError(f"cannot write {path}: name a folder of its own")
    nearest = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    below_a_file = nearest != path.absolute() and not nearest.is_dir()
    if below_a_file or not os.access(nearest, os.W_OK):
        reason = f"{nearest} is a file" if below_a_file else f"{nearest} is not writable"
        raise ArtifactError(f"cannot write {path}: {reason}")


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write readable JSON atomically. NaN is not JSON and raises `ValueError`: store null with a reason instead."""
    atomic_write(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises `ArtifactError` when the file is missing or holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is not valid JSON ({error}); it was cut short or edited by hand") from None
    if not isinstance(value, dict):
        raise ArtifactError(f"{path} should hold a JSON object, not {type(value).__name__}")
    return value


def progress(items: Iterable[Item], description: str, *, total: int | None = None) -> Iterator[Item]:
    """Iterate with a progress bar on the standard error, and the time that is left.

    Without a terminal there is a line after `PATIENCE` seconds and then every `QUIET_SECONDS`.
    """
    from tqdm import tqdm  # type: ignore[import-untyped]

    if sys.stderr.isatty():
        yield from tqdm(items, description, total=total, leave=False, delay=1.0)
        return
    size = len(items) if total is None and isinstance(items, Sized) else total
    started, next_line = time.monotonic(), PATIENCE
    for number, item in enumerate(items):
        took = time.monotonic() - started
        if number and took >= next_line:
            next_line = took + QUIET_SECONDS
            left = "" if size is None else f" of {size}, about {in_minutes(took * max(size - number, 0) / number)} left"
            say(f"{description}: {number}{left}")
        yield item


@contextmanager
def said_if_long(what: str) -> Iterator[None]:
    """Around what cannot be counted: says `what` is being done once it has taken `PATIENCE` seconds."""
    timer = threading.Timer(PATIENCE, say, [f"{what} ..."])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def in_minutes(seconds: float) -> str:
    """For a person: seconds up to a minute and a half, then minutes, then hours."""
    minutes = seconds / 60
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def first_rank() -> bool:
    """Whether this is the first of several processes, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """One line for the person at the terminal, above a bar if there is one, on the standard error: results go to the other.

    Of several processes the first says it.
    """
    if not first_rank():
        return
    from tqdm import tqdm

    tqdm.write(text, file=sys.stderr)
