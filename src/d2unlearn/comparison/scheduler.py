"""What carries a comparison's runs out: in this process, as commands of this machine, or as tasks of a Ray cluster.

Nothing is handed over between runs but files, so any number of processes and machines that share the folders can work on the
same comparison: each takes runs whose needs are met and that nobody else has claimed.
"""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d2unlearn.comparison.plan import Run
from d2unlearn.config import CompareSettings
from d2unlearn.errors import ConfigError, D2Error
from d2unlearn.runtime import say

POLL_SECONDS = 2.0
WAIT_SECONDS = 20.0
"""Between two looks at runs that only others work on."""


@dataclass(frozen=True)
class Progress:
    """How the work stands. `runs` may grow as tunings are done."""

    runs: Callable[[], list[Run]]
    is_done: Callable[[Run], bool]
    is_claimed: Callable[[Run], bool]
    needs: Callable[[Run], Sequence[str]]

    def ready(self) -> list[Run]:
        """Runs that can begin now: not done, needs met, claimed by nobody."""
        runs = self.runs()
        done = {run.key for run in runs if self.is_done(run)}
        waiting = [run for run in runs if run.key not in done and set(self.needs(run)) <= done]
        return [run for run in waiting if not self.is_claimed(run)]

    def others_work(self) -> bool:
        """Whether some run is not done and another process is at it."""
        return any(not self.is_done(run) and self.is_claimed(run) for run in self.runs())


class Backend(ABC):
    """Starts runs. `slots`: how many at once."""

    slots: int = 1

    @abstractmethod
    def start(self, run: Run) -> Any:
        """Begin a run; returns a handle."""

    def has_ended(self, handle: Any) -> bool:
        """Whether it is over, well or not: at once where `start` waits for the end."""
        return True

    @abstractmethod
    def stop(self, handle: Any) -> None:
        """End a run that is under way."""

    def last_words(self, run: Run) -> str:
        """What a run said last, for one that failed; empty where it spoke for itself."""
        return ""


def run_all(progress: Progress, backend: Backend, *, poll: float = POLL_SECONDS, wait: float = WAIT_SECONDS) -> list[str]:
    """Do all runs that can be done; the keys of those that failed here. Each is tried once; done work is never repeated.

    Ends when nothing is left that this process could do, now or once others have finished what they are at.
    """
    going: dict[str, tuple[Run, Any, float]] = {}
    failed: list[str] = []
    try:
        while True:
            ended = [key for key, (_, handle, _) in going.items() if backend.has_ended(handle)]
            for key in ended:
                run, _, began = going.pop(key)
                _note_end(progress, backend, run, time.monotonic() - began, failed)
            others = progress.others_work()  # looked up before and after: what they finish in between opens new work
            todo = [run for run in progress.ready() if run.key not in going and run.key not in failed]
            begun = todo[: backend.slots - len(going)]
            for run in begun:
                say(f"{run.key} begins")
                going[run.key] = (run, backend.start(run), time.monotonic())
            if ended or begun:
                continue
            if not going and not others and not progress.others_work():
                return failed
            time.sleep(poll if going else wait)
    finally:
        for _, handle, _ in going.values():
            backend.stop(handle)


def _note_end(progress: Progress, backend: Backend, run: Run, seconds: float, failed: list[str]) -> None:
    if progress.is_done(run):
        runs = progress.runs()
        say(f"{run.key} done in {seconds / 60:.1f} minutes, {sum(map(progress.is_done, runs))} of {len(runs)}")
    elif not progress.is_claimed(run):
        failed.append(run.key)
        say(": ".join(part for part in (f"{run.key} failed", backend.last_words(run)) if part))


class InProcess(Backend):
    """Runs in this process, one after another. An error that a person can mend fails the run and is said; others are raised."""

    def __init__(self, do: Callable[[str], None]) -> None:
        self._do = do

    def start(self, run: Run) -> None:
        try:
            self._do(run.key)
        except D2Error as error:
            say(f"error: {error}")

    def stop(self, handle: None) -> None:
        pass


@dataclass(frozen=True)
class RunCommand:
    """How a run is started as a command of its own, and where that writes what it says."""

    settings: Path
    launcher: str | None
    logs: Path

    def of(self, run: Run) -> list[str]:
        """The command that does one run: python's, or that of a launcher which takes `-m MODULE` as python does.

        `--key` is `--run` by another name, which torchrun does not take for an option of its own cut short.
        """
        launcher = [sys.executable] if self.launcher is None else shlex.split(self.launcher)
        return [*launcher, "-m", "d2unlearn.cli.main", "compare", "--config", str(self.settings), "--key", run.key]

    def log(self, run: Run) -> Path:
        path = self.logs / f"{run.key}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


class _Logged(Backend):
    """Runs that say what they say to their logs, `jobs` at once."""

    def __init__(self, command: RunCommand, jobs: int) -> None:
        self.slots = jobs
        self._command = command

    def last_words(self, run: Run) -> str:
        log = self._command.log(run)
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


class Subprocess(_Logged):
    """Each run as a command of its own."""

    def start(self, run: Run) -> subprocess.Popen[bytes]:
        with self._command.log(run).open("ab") as file:
            return subprocess.Popen(self._command.of(run), stdout=file, stderr=subprocess.STDOUT)

    def has_ended(self, handle: subprocess.Popen[bytes]) -> bool:
        return handle.poll() is not None

    def stop(self, handle: subprocess.Popen[bytes]) -> None:
        handle.terminate()
        handle.wait()


class RayTasks(_Logged):
    """Each run as a task of a Ray cluster whose machines share the folders, on so many processors and accelerators of it."""

    def __init__(self, command: RunCommand, jobs: int, cpus: float, gpus: float) -> None:
        try:
            import ray
        except ModuleNotFoundError:
            raise ConfigError(["backend ray needs the package ray, which is not installed here"]) from None
        super().__init__(command, jobs)
        self._ray = ray
        ray.init(ignore_reinit_error=True)
        self._task = ray.remote(num_cpus=cpus, num_gpus=gpus)(logged_call)

    def start(self, run: Run) -> Any:
        return self._task.remote(self._command.of(run), str(self._command.log(run)), str(Path.cwd()))

    def has_ended(self, handle: Any) -> bool:
        ended, _ = self._ray.wait([handle], timeout=0)
        return bool(ended)

    def stop(self, handle: Any) -> None:
        self._ray.cancel(handle, force=True)  # a task that waits for its command hears nothing else


def backend_of(settings: CompareSettings, file: Path, do: Callable[[str], None]) -> Backend:
    """The backend that was asked for. file: the settings, for commands; do: a run's work by its key, for this process."""
    if settings.backend == "here":
        return InProcess(do)
    command = RunCommand(file.absolute(), settings.launcher, (Path(settings.output) / "logs").absolute())
    if settings.backend == "ray":
        return RayTasks(command, settings.jobs, settings.cpus, settings.gpus)
    return Subprocess(command, settings.jobs)


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """What schedulers, `timeout` and `docker stop` end a process by is taken as Ctrl-C: runs under way end as well."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def logged_call(command: Sequence[str], log: str, folder: str) -> int:
    """Run a command in a folder, with what it says appended to a log; its exit code."""
    with open(log, "ab") as file:
        return subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, cwd=folder, check=False).returncode
