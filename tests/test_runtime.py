"""Files are written whole or not at all; hashes, seeds, devices and progress are one policy."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from d2unlearn import runtime
from d2unlearn.errors import ArtifactError, ConfigError
from d2unlearn.runtime import (
    atomic_path,
    atomic_write,
    cache_dir,
    check_writable,
    drawing_from,
    fingerprint,
    hash_file,
    in_minutes,
    is_text,
    pick_device,
    progress,
    read_json,
    remove,
    said_if_long,
    say,
    seed_everything,
    torch_dtype,
    write_json,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_half(path: Path, failure: BaseException, *, name: str = "") -> None:
    """Stage a file, or one within a folder, and fail."""
    with atomic_path(path) as staged:
        (staged / name).parent.mkdir(parents=True, exist_ok=True)
        (staged / name).write_text("half")
        raise failure


def test_a_file_is_written_with_the_folders_it_needs(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.txt"
    atomic_write(path, "Łódź\n")
    assert path.read_bytes() == "Łódź\n".encode()
    atomic_write(path, "second")
    assert path.read_text() == "second"
    assert names(path.parent) == ["file.txt"]


def test_a_reader_never_sees_a_half_written_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with atomic_path(path) as staged:
        staged.write_text("half")
        assert path.read_text() == "old"
        assert staged.parent == path.parent  # so that one rename puts it in place
    assert path.read_text() == "half"


@pytest.mark.parametrize(
    "failure", [RuntimeError("bug"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")]
)
def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, failure: BaseException) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    wanted = ArtifactError if isinstance(failure, OSError) else type(failure)
    with pytest.raises(wanted):
        write_half(path, failure)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_what_a_killed_process_was_writing_goes_with_the_next_write_and_what_others_write_stays(tmp_path: Path) -> None:
    """A process that ended, this one, one that runs, another machine's, and another file's."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    with atomic_path(tmp_path / "file.txt") as staged:
        staged.touch()
    machine = staged.name.split(".")[-3]
    (tmp_path / f".file.txt.{machine}.{ended.pid}.partial").mkdir()
    (tmp_path / f".file.txt.{machine}.{ended.pid}.partial" / "weights").touch()
    (tmp_path / f".file.txt.{machine}.{os.getpid()}.partial").mkdir()
    others = [
        f".file.txt.{machine}.{os.getppid()}.partial",
        f".file.txt.another.{ended.pid}.partial",
        f".other.txt.{machine}.{ended.pid}.partial",
    ]
    for name in others:
        (tmp_path / name).touch()
    atomic_write(tmp_path / "file.txt", "whole")
    assert names(tmp_path) == sorted([*others, "file.txt"])


def test_a_failing_write_of_a_folder_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="bug"):
        write_half(tmp_path / "folder", RuntimeError("bug"), name="deep/file")
    assert names(tmp_path) == []


def test_a_full_disk_is_told_by_file_and_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "file.json"
    write_json(path, {"a": 1})
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ArtifactError, match=rf"^cannot write {path}: No space left on device$"):
        write_json(path, {"a": 2})
    assert read_json(path) == {"a": 1}
    assert names(tmp_path) == ["file.json"]


def test_a_write_that_really_runs_out_of_room_leaves_the_old_file(tmp_path: Path) -> None:
    """With a limit on file sizes, which the operating system enforces as it does a full disk."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "file.txt"
    atomic_write(path, "old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(ArtifactError, match=f"^cannot write {path}: File too large$"):
            atomic_write(path, "new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_a_place_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "below", tmp_path / "file" / "far" / "below"):
        with pytest.raises(ArtifactError, match=rf"cannot write {path}: {tmp_path / 'file'} is a file"):
            check_writable(path)
        with pytest.raises(ArtifactError, match=f"cannot write {path}"):
            atomic_write(path, "text")
    check_writable(tmp_path / "file")
    check_writable(tmp_path / "new" / "far" / "below")
    assert names(tmp_path) == ["file"]


def test_a_place_without_permission_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ArtifactError, match=rf"cannot write {tmp_path / 'x'}: {tmp_path} is not writable"):
        check_writable(tmp_path / "x")


def test_remove_takes_files_folders_and_links_and_nothing_behind_them(tmp_path: Path) -> None:
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    for name in ("folder", "file", "link", "was never there"):
        remove(tmp_path / name)
    assert names(tmp_path) == ["kept"]


def test_json_goes_and_comes_back_and_holds_no_nan(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None], "a": {"é": True}}
    path = tmp_path / "file.json"
    write_json(path, value)
    assert read_json(path) == value
    assert "é" in path.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert read_json(path) == value


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"a": 1', "is not valid JSON .*; it was cut short or edited by hand"),
        (b"\xff\xfe", "is not valid JSON"),
        (b"[1]", "should hold a JSON object, not list"),
        (None, "does not exist"),
    ],
)
def test_json_that_cannot_be_read_is_an_error_that_says_why(tmp_path: Path, content: bytes | None, says: str) -> None:
    path = tmp_path / "file.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match=f"^{path} {says}"):
        read_json(path)


def test_equal_values_have_equal_fingerprints_and_others_others() -> None:
    text = '{"a":[1,"é"],"b":null}'
    assert fingerprint({"b": None, "a": (1, "é")}) == hashlib.sha256(text.encode()).hexdigest()
    values = [[1, 2], [12], ["1", "2"], [[1], 2], {"a": 1}, {"a": "1"}, "a", None, True, 1.5]
    assert len({fingerprint(value) for value in values}) == len(values)
    assert fingerprint({"path": Path("x")}) == fingerprint({"path": "x"})


def test_a_file_s_hash_is_sha256_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert hash_file(tmp_path / "file") == hashlib.sha256(b"abc").hexdigest()


def test_half_a_surrogate_pair_is_no_text() -> None:
    assert is_text("")
    assert is_text("é😀\x00")
    assert not is_text("a\ud83d")
    assert not is_text(os.fsdecode(b"\xff"))


def test_a_seed_covers_python_numpy_and_torch() -> None:
    draws = []
    for seed in (3, 3, 4):
        seed_everything(seed)
        draws.append((random.random(), np.random.rand(), float(torch.rand(1))))  # noqa: NPY002 - that state is meant
    assert draws[0] == draws[1]
    assert all(a != b for a, b in zip(draws[0], draws[2], strict=True))


def test_drawing_from_a_seed_leaves_the_generators_as_they_were() -> None:
    before = torch.get_rng_state()
    with drawing_from(3, torch.device("cpu")):
        first = torch.rand(4)
    with drawing_from(3):
        assert torch.equal(torch.rand(4), first)
    with drawing_from(None):
        assert not torch.equal(torch.rand(4), first)
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ZeroDivisionError), drawing_from(3):
        _ = torch.rand(1) / 0, 1 / 0
    assert torch.equal(torch.get_rng_state(), before)


def test_dtypes_by_name() -> None:
    assert [torch_dtype(n) for n in ("auto", "float32", "bfloat16", "float16")] == [
        None,
        torch.float32,
        torch.bfloat16,
        torch.float16,
    ]
    with pytest.raises(ConfigError, match=r"dtype 'int8' is not known; choose one of auto, float32, bfloat16, float16"):
        torch_dtype("int8")


def test_the_device_is_an_accelerator_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("meta") == torch.device("meta")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert pick_device() == torch.device("cpu")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("meta"))
    assert pick_device() == torch.device("meta")


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("D2UNLEARN_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("D2UNLEARN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir().name == "d2unlearn"


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_hands_every_item_on_and_is_silent_without_a_terminal(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert list(progress(iter([3, 1, 2]), "counting", total=3)) == [3, 1, 2]
    out, err = capsys.readouterr()
    assert out == ""
    assert terminal or err == ""


def test_long_work_without_a_terminal_says_now_and_then_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runtime, "PATIENCE", 5.0)
    clock = iter([0.0, 0.0, 6.0, 35.0, 36.0])
    monkeypatch.setattr(runtime.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    assert list(progress(["a", "b", "c", "d"], "counting")) == ["a", "b", "c", "d"]
    assert capsys.readouterr().err == "counting: 1 of 4, about 18 s left\ncounting: 3 of 4, about 12 s left\n"


def test_what_cannot_be_counted_is_said_once_it_takes_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with said_if_long("loading x"):
        pass
    monkeypatch.setattr(runtime, "PATIENCE", 0.01)
    with said_if_long("loading y"):
        time.sleep(0.3)
    assert capsys.readouterr().err == "loading y ...\n"


@pytest.mark.parametrize(("seconds", "said"), [(41.4, "41 s"), (89.0, "89 s"), (150.0, "2 min"), (5400.0, "1.5 h")])
def test_a_time_is_said_as_a_person_would(seconds: float, said: str) -> None:
    assert in_minutes(seconds) == said


def test_what_is_said_goes_to_the_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    say("done")
    assert capsys.readouterr() == ("", "done\n")


def test_help_does_not_wait_for_torch() -> None:
    """Neither the command line's own modules nor the report load it."""
    code = "import sys, d2unlearn.cli.main, d2unlearn.report.run; print(json.dumps('torch' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", f"import json; {code}"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) is False
