"""The order of work: needs, slots, failures, what others are at; commands of this machine, and tasks of a stand-in for Ray."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from d2unlearn.comparison.plan import Run
from d2unlearn.comparison.scheduler import (
    Backend,
    InProcess,
    Progress,
    RayTasks,
    RunCommand,
    Subprocess,
    backend_of,
    ended_by_sigterm,
    logged_call,
    run_all,
)
from d2unlearn.config import CompareSettings
from d2unlearn.errors import ConfigError

TUNE, ONE, TWO = (Run("ten", "npo", "method", seed) for seed in (None, 1, 2))
OTHER = Run("ten", "eua", "method", None)
NEEDS: dict[Run, Sequence[str]] = {TUNE: (), ONE: (TUNE.key,), TWO: (TUNE.key,), OTHER: ()}


class World:
    """Runs, those that are done, and those that somebody else has claimed."""

    def __init__(self, runs: list[Run], done: set[Run] | None = None) -> None:
        self.runs = runs
        self.done = done or set()
        self.claimed: set[Run] = set()

    def progress(self) -> Progress:
        return Progress(lambda: self.runs, self.done.__contains__, self.claimed.__contains__, NEEDS.__getitem__)


class Scripted(Backend):
    """A run ends at its second look; `ends` says whether it is done then."""

    def __init__(self, world: World, *, slots: int = 1, fails: Sequence[Run] = ()) -> None:
        self.slots = slots
        self.world = world
        self.fails = fails
        self.looks: dict[Run, int] = {}
        self.begun: list[str] = []
        self.most = 0
        self.stopped: list[Run] = []

    def start(self, run: Run) -> Run:
        self.begun.append(run.key)
        self.looks[run] = 0
        self.most = max(self.most, len(self.looks))
        return run

    def has_ended(self, handle: Run) -> bool:
        if handle not in self.looks:
            return True
        self.looks[handle] += 1
        if self.looks[handle] < 2:
            return False
        del self.looks[handle]
        if handle not in self.fails:
            self.world.done.add(handle)
        return True

    def stop(self, handle: Run) -> None:
        self.stopped.append(handle)


def carried(world: World, backend: Backend) -> list[str]:
    return run_all(world.progress(), backend, poll=0.0, wait=0.01)


def test_a_run_begins_when_what_it_needs_is_done_and_nothing_is_done_twice() -> None:
    world = World([ONE, TWO, TUNE, OTHER], done={OTHER})
    backend = Scripted(world)
    assert carried(world, backend) == []
    assert backend.begun == [TUNE.key, ONE.key, TWO.key]
    assert (world.done, backend.most) == ({TUNE, ONE, TWO, OTHER}, 1)
    assert carried(world, backend) == []
    assert len(backend.begun) == 3


def test_as_many_run_at_once_as_there_are_slots() -> None:
    world = World([TUNE, ONE, TWO, OTHER], done={TUNE})
    backend = Scripted(world, slots=2)
    assert carried(world, backend) == []
    assert (backend.most, len(backend.begun)) == (2, 3)


def test_a_failed_run_is_tried_once_and_what_needs_it_is_left() -> None:
    world = World([TUNE, ONE, TWO, OTHER])
    backend = Scripted(world, fails=[TUNE])
    assert carried(world, backend) == [TUNE.key]
    assert backend.begun == [TUNE.key, OTHER.key]


def test_what_others_are_at_is_waited_for_and_what_it_opens_is_done_here() -> None:
    world = World([TUNE, ONE])
    world.claimed = {TUNE}
    looks = iter(range(100))

    def is_done(run: Run) -> bool:
        if run == TUNE and next(looks) > 6:
            world.claimed.discard(TUNE)
            world.done.add(TUNE)
        return run in world.done

    backend = Scripted(world)
    assert run_all(replace(world.progress(), is_done=is_done), backend, poll=0.0, wait=0.0) == []
    assert backend.begun == [ONE.key]


def test_a_run_that_another_process_took_meanwhile_is_no_failure() -> None:
    """Both began it; the other was first. It is taken up again when the other dies."""
    world = World([OTHER])

    class Late(Scripted):
        def has_ended(self, handle: Run) -> bool:
            if len(self.begun) > 1:
                return super().has_ended(handle)
            self.world.claimed.add(OTHER)
            return True

        def start(self, run: Run) -> Run:
            self.world.claimed.clear()
            return super().start(run)

    backend = Late(world)

    def is_claimed(run: Run) -> bool:
        claimed = run in world.claimed
        world.claimed.clear()
        return claimed

    assert run_all(replace(world.progress(), is_claimed=is_claimed), backend, poll=0.0, wait=0.0) == []
    assert backend.begun == [OTHER.key, OTHER.key]
    assert world.done == {OTHER}


def test_runs_under_way_are_stopped_when_the_work_is_interrupted() -> None:
    world = World([TUNE, OTHER])

    class Interrupted(Scripted):
        def has_ended(self, handle: Run) -> bool:
            raise KeyboardInterrupt

    backend = Interrupted(world, slots=2)
    with pytest.raises(KeyboardInterrupt):
        carried(world, backend)
    assert backend.stopped == [TUNE, OTHER]


# -- backends -------------------------------------------------------------------------------------------------------------


def settings(folder: Path, **changes: Any) -> CompareSettings:
    return CompareSettings("model", {"ten": {}}, str(folder), **changes)


def nothing(key: str) -> None:
    raise AssertionError(key)


def command_in(folder: Path, launcher: str | None = None) -> RunCommand:
    return RunCommand(folder / "c.yaml", launcher, folder / "logs")


def test_a_run_is_a_plain_command_that_a_launcher_can_start(tmp_path: Path) -> None:
    said = ["-m", "d2unlearn.cli.main", "compare", "--config", str(tmp_path / "c.yaml"), "--key", "ten/npo/seed-1"]
    assert command_in(tmp_path).of(ONE) == [sys.executable, *said]
    launched = command_in(tmp_path, "accelerate launch --num_processes 2 --mixed_precision 'no'")
    assert launched.of(ONE) == ["accelerate", "launch", "--num_processes", "2", "--mixed_precision", "no", *said]


def test_in_this_process_a_mendable_error_fails_the_run_and_a_bug_is_raised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World([TUNE, OTHER])

    def do(key: str) -> None:
        if key == TUNE.key:
            raise ConfigError(["no such thing"])
        world.done.add(OTHER)

    backend = InProcess(do)
    assert carried(world, backend) == [TUNE.key]
    assert world.done == {OTHER}
    assert "error: no such thing" in capsys.readouterr().err
    with pytest.raises(AssertionError, match="ten/npo/tune"):
        carried(World([TUNE]), InProcess(nothing))


@pytest.fixture
def scripted_command(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def replaced(program: str) -> None:
        monkeypatch.setattr(RunCommand, "of", lambda *_: [sys.executable, "-c", program])

    return replaced


def test_commands_write_to_logs_and_end(tmp_path: Path, scripted_command: Callable[[str], None]) -> None:
    scripted_command("print('said'); import sys; print('and this', file=sys.stderr)")
    backend = Subprocess(command_in(tmp_path), jobs=2)
    assert backend.slots == 2
    assert carried(World([TUNE]), backend) == [TUNE.key]
    assert sorted(command_in(tmp_path).log(TUNE).read_text().split("\n")) == ["", "and this", "said"]


def test_a_stopped_command_is_gone(tmp_path: Path, scripted_command: Callable[[str], None]) -> None:
    scripted_command("import time; time.sleep(600)")
    backend = Subprocess(command_in(tmp_path), jobs=1)
    handle = backend.start(ONE)
    assert not backend.has_ended(handle)
    backend.stop(handle)
    assert (backend.has_ended(handle), handle.returncode) == (True, -signal.SIGTERM)


def test_a_command_that_failed_is_quoted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "fails.py"
    script.write_text("print('much before')\nraise SystemExit('error: forget.jsonl does not exist\\n')\n")
    backend = Subprocess(command_in(tmp_path, f"{shlex.quote(sys.executable)} {shlex.quote(str(script))}"), jobs=1)
    assert carried(World([TUNE]), backend) == [TUNE.key]
    assert f"{TUNE.key} failed: error: forget.jsonl does not exist\n" in capsys.readouterr().err
    assert backend.last_words(ONE) == ""


def test_sigterm_ends_what_is_under_way_as_ctrl_c_does() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), ended_by_sigterm():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


class Ray(ModuleType):
    """What is used of Ray: tasks that run in threads of this process, one resource request a task."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.asked: list[dict[str, float]] = []
        self.ran: list[tuple[Any, ...]] = []
        self.cancelled: list[Any] = []
        self.initialised: list[dict[str, bool]] = []

    def init(self, **options: bool) -> None:
        self.initialised.append(options)

    def remote(self, **resources: float) -> Callable[[Callable[..., Any]], Any]:
        self.asked.append(resources)
        ray = self

        def wrapped(function: Callable[..., Any]) -> Any:
            class Task:
                @staticmethod
                def remote(*arguments: Any) -> tuple[str, float]:
                    ray.ran.append(arguments)
                    function(*arguments)
                    return ("reference", time.monotonic() + 0.05)

            return Task

        return wrapped

    def wait(self, references: list[tuple[str, float]], *, timeout: float) -> tuple[list[Any], list[Any]]:
        assert timeout == 0
        ended = [reference for reference in references if reference[1] <= time.monotonic()]
        return ended, [reference for reference in references if reference not in ended]

    def cancel(self, reference: Any, *, force: bool) -> None:
        assert force
        self.cancelled.append(reference)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Ray:
    made = Ray()
    monkeypatch.setitem(sys.modules, "ray", made)
    return made


def test_ray_is_given_plain_commands_with_what_each_needs_of_the_cluster(
    ray: Ray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = settings(tmp_path, backend="ray", jobs=3, cpus=2.0, gpus=0.5, launcher=f"{shlex.quote(sys.executable)} -c pass")
    backend = backend_of(given, Path("c.yaml"), nothing)
    assert isinstance(backend, RayTasks)
    assert (backend.slots, ray.asked, ray.initialised) == (
        3,
        [{"num_cpus": 2.0, "num_gpus": 0.5}],
        [{"ignore_reinit_error": True}],
    )
    assert carried(World([TUNE]), backend) == [TUNE.key]
    command, log, folder = ray.ran[0]
    expected = command_in(tmp_path, given.launcher)
    assert command == expected.of(TUNE)
    assert (Path(log), Path(folder)) == (expected.log(TUNE), tmp_path)
    handle = backend.start(ONE)
    backend.stop(handle)
    assert ray.cancelled == [handle]


@pytest.fixture
def cluster() -> Iterator[None]:
    """Ray itself, on this machine."""
    ray = pytest.importorskip("ray", reason="ray is not installed; a stand-in is asked in its place")
    yield
    ray.shutdown()


def test_ray_itself_runs_a_command_and_ends_one_that_is_stopped(cluster: None, tmp_path: Path) -> None:
    script = tmp_path / "wait.py"
    script.write_text(
        "import os, sys, time\nprint(sys.argv[-1], os.getpid(), flush=True)\n'tune' in sys.argv[-1] or time.sleep(600)\n"
    )
    given = settings(tmp_path, backend="ray", jobs=2, launcher=f"{shlex.quote(sys.executable)} {shlex.quote(str(script))}")
    backend, logs = backend_of(given, tmp_path / "c.yaml", nothing), command_in(tmp_path)
    short, long = backend.start(TUNE), backend.start(ONE)
    wait_until(lambda: backend.has_ended(short))
    assert logs.log(TUNE).read_text().startswith(f"{TUNE.key} ")
    wait_until(lambda: logs.log(ONE).is_file() and logs.log(ONE).read_text().endswith("\n"))
    assert not backend.has_ended(long)
    backend.stop(long)
    wait_until(lambda: backend.has_ended(long) and not is_running(int(logs.log(ONE).read_text().split()[-1])))


def wait_until(holds: Callable[[], bool], *, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_backend_is_the_one_that_was_asked_for(tmp_path: Path) -> None:
    made = {name: backend_of(settings(tmp_path, backend=name, jobs=2), tmp_path, nothing) for name in ("here", "process")}
    assert {name: (type(backend), backend.slots) for name, backend in made.items()} == {
        "here": (InProcess, 1),
        "process": (Subprocess, 2),
    }


def test_without_ray_the_backend_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="needs the package ray"):
        backend_of(settings(tmp_path, backend="ray"), tmp_path, nothing)


def test_a_logged_call_runs_in_its_folder_and_returns_its_code(tmp_path: Path) -> None:
    code = logged_call(
        [sys.executable, "-c", "import os; print(os.getcwd()); raise SystemExit(3)"], str(tmp_path / "log"), str(tmp_path)
    )
    assert (code, (tmp_path / "log").read_text()) == (3, f"{tmp_path}\n")
