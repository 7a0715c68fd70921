"""The place where an artifact is made and the place where it appears: locked, refused, put there in one step."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from filelock import FileLock

from d2unlearn.artifact import holds_result, is_done, manifest, new_result, publish, read_manifest, workspace_of
from d2unlearn.errors import ArtifactError, DataError
from d2unlearn.runtime import read_json, write_json
from d2unlearn.schema import MANIFEST_FILE

KEY = "the key of a run"


def artifact(folder: Path, key: str = KEY) -> Path:
    folder.mkdir(parents=True)
    (folder / MANIFEST_FILE).write_text(json.dumps({"key": key}))
    return folder


def fail_after_a_checkpoint(output: Path, error: BaseException) -> None:
    with workspace_of(output, KEY) as workspace:
        (workspace / "checkpoints" / "checkpoint-2").mkdir(parents=True)
        raise error


# -- what stands at the output ----------------------------------------------------------------------------------------


def test_nothing_or_an_empty_folder_is_not_done(tmp_path: Path) -> None:
    assert not holds_result(tmp_path / "nowhere", KEY)
    assert not holds_result(tmp_path, KEY)


def test_the_same_run_s_artifact_is_done_and_another_s_is_refused(tmp_path: Path) -> None:
    folder = artifact(tmp_path / "artifact")
    assert holds_result(folder, KEY)
    with pytest.raises(ArtifactError, match="of other inputs or settings; give --force to replace it, or choose another"):
        holds_result(folder, "another key")


def test_what_differs_from_the_run_that_is_there_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest("unlearn", KEY, settings={"epochs": 10, "seed": 0, "output": "a"})))
    with pytest.raises(ArtifactError, match=r"other inputs or settings \(epochs: 10 there, 20 here\); give --force"):
        holds_result(folder, "another", {"epochs": 20, "seed": 0, "output": "b", "new": 1})
    with pytest.raises(ArtifactError, match="other inputs or settings; give --force"):
        holds_result(folder, "another", {"epochs": 10, "seed": 0})


def test_what_is_no_artifact_is_left_alone(tmp_path: Path) -> None:
    file, folder, damaged = tmp_path / "file", tmp_path / "folder", tmp_path / "damaged"
    file.write_text("mine")
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")
    artifact(damaged)
    (damaged / MANIFEST_FILE).write_text('{"key": ')
    for place in (file, folder):
        with pytest.raises(ArtifactError, match="exists and is not an artifact"):
            holds_result(place, KEY)
    with pytest.raises(ArtifactError, match="not valid JSON"):
        holds_result(damaged, KEY)
    assert file.read_text() == (folder / "thesis.tex").read_text() == "mine"


# -- the workspace ----------------------------------------------------------------------------------------------------


def test_one_process_works_at_an_output_at_a_time(tmp_path: Path) -> None:
    output = tmp_path / "artifact"
    with workspace_of(output, KEY) as workspace:
        assert workspace == tmp_path / "artifact.partial"
        with pytest.raises(ArtifactError, match="another process is at work"), workspace_of(output, KEY):
            raise AssertionError("two at once")
        assert workspace.is_dir()
        with (workspace / "lock").open("w") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with workspace_of(output, KEY) as again:
        assert again == workspace


def test_other_processes_of_one_run_work_beside_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with workspace_of(tmp_path / "artifact", KEY):
        monkeypatch.setenv("RANK", "1")
        with workspace_of(tmp_path / "artifact", KEY) as workspace:
            assert workspace.is_dir()


def test_a_file_system_without_locks_is_worked_on_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with workspace_of(tmp_path / "artifact", KEY) as workspace:
        assert workspace.is_dir()


def test_a_lock_that_may_not_be_had_is_no_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with pytest.raises(ArtifactError, match=r"cannot lock .*: Permission denied"), workspace_of(tmp_path / "artifact", KEY):
        raise AssertionError("worked on")


def test_an_interrupted_run_is_taken_up_by_its_key_alone(tmp_path: Path) -> None:
    output = tmp_path / "artifact"
    with pytest.raises(KeyboardInterrupt):
        fail_after_a_checkpoint(output, KeyboardInterrupt())
    with pytest.raises(ArtifactError, match="belongs to an interrupted run with other"), workspace_of(output, "another"):
        raise AssertionError("taken up")
    with workspace_of(output, KEY) as workspace:
        assert (workspace / "checkpoints" / "checkpoint-2").is_dir()


def test_a_workspace_without_a_checkpoint_is_anybody_s(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), workspace_of(tmp_path / "artifact", KEY):
        raise KeyboardInterrupt
    with workspace_of(tmp_path / "artifact", "another") as workspace:
        assert json.loads((workspace / "run.json").read_text()) == {"key": "another"}


def test_an_error_before_the_first_checkpoint_leaves_nothing_and_a_later_one_leaves_it(tmp_path: Path) -> None:
    with pytest.raises(DataError), workspace_of(tmp_path / "artifact", KEY):
        raise DataError("a row is too long")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError):
        fail_after_a_checkpoint(tmp_path / "artifact", DataError("a row is too long"))
    assert (tmp_path / "artifact.partial" / "checkpoints" / "checkpoint-2").is_dir()


def test_a_mount_point_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mount").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "mount")
    with pytest.raises(ArtifactError, match="is a mount point"), workspace_of(tmp_path / "mount", KEY):
        raise AssertionError("worked")
    assert [path.name for path in tmp_path.iterdir()] == ["mount"]


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    place = tmp_path / "file" / "artifact"
    with pytest.raises(ArtifactError, match=r"cannot write .*artifact: Not a directory"), workspace_of(place, KEY):
        raise AssertionError("worked")


# -- publishing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("there_before", [False, True])
def test_publishing_puts_the_folder_in_place_and_removes_the_workspace(tmp_path: Path, there_before: bool) -> None:
    output = tmp_path / "artifact"
    if there_before:
        output.mkdir()
    with workspace_of(output, KEY) as workspace:
        staged = artifact(workspace / "artifact")
        (staged / "model.safetensors").write_bytes(b"weights")
        publish(staged, output)
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]
    assert holds_result(output, KEY)
    assert (output / "model.safetensors").read_bytes() == b"weights"


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_weights_are_readable_by_whoever_may_read_the_rest(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        staged = artifact(tmp_path / "artifact.partial" / "artifact")
        (staged / "adapter").mkdir()
        for weights in (staged / "model.safetensors", staged / "adapter" / "adapter_model.safetensors"):
            weights.write_bytes(b"weights")
            weights.chmod(0o600)  # as safetensors writes them
        publish(staged, tmp_path / "artifact")
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "artifact").rglob("*") if path.is_file()]
    assert len(files) == 3
    assert {path.stat().st_mode & 0o777 for path in files} == {mode}


def test_a_link_to_the_output_s_place_is_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    with workspace_of(tmp_path / "link" / "artifact", KEY) as workspace:
        assert workspace.parent == tmp_path / "disk"
        publish(artifact(workspace / "artifact"), tmp_path / "link" / "artifact")
    assert holds_result(tmp_path / "disk" / "artifact", KEY)


def test_a_manifest_names_command_key_and_versions(tmp_path: Path) -> None:
    found = manifest("unlearn", KEY, seed=3)
    assert (found["command"], found["key"], found["seed"]) == ("unlearn", KEY, 3)
    assert found["versions"].keys() >= {"d2unlearn", "torch", "transformers", "safetensors"}
    assert read_manifest(artifact(tmp_path / "artifact")) == {"key": KEY}
    assert read_manifest(tmp_path) is None


@dataclass
class Settings:
    output: str
    seed: int


def test_a_result_is_made_once_and_said_to_be_done_afterwards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, settings = tmp_path / "result", Settings("result", 3)
    assert not is_done(output, KEY, settings)
    with pytest.raises(ValueError, match="not JSON compliant"), new_result(output, "evaluate", KEY, settings) as folder:
        write_json(folder / "numbers.json", {"half": float("nan")})
    assert list(tmp_path.iterdir()) == []
    with new_result(output, "evaluate", KEY, settings) as folder:
        write_json(folder / "numbers.json", {"all": 2})
    assert read_json(output / "numbers.json") == {"all": 2}
    made = read_json(output / MANIFEST_FILE)
    assert abs(datetime.fromisoformat(made["made"]) - datetime.now(UTC)) < timedelta(minutes=5)
    expected = manifest("evaluate", KEY, settings={"output": "result", "seed": 3})
    assert made == {**expected, "made": made["made"]}
    assert capsys.readouterr().err == ""
    assert is_done(output, KEY, settings)
    assert capsys.readouterr().err == f"{output} is done: same inputs, same settings\n"
    with pytest.raises(ArtifactError, match=r"settings \(seed: 3 there, 4 here\)"):
        is_done(output, "another", Settings("result", 4))
