"""What is written where the user says: links, what is no file, what another command made, what `--force` may take away."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path

import pytest

from d2unlearn.artifact import is_done, manifest, new_result, publish, workspace_of
from d2unlearn.errors import ArtifactError
from d2unlearn.outputs import check_file, has_mark, kept_settings, note_of, output_place, read_note, with_mark
from d2unlearn.runtime import write_json
from d2unlearn.schema import MANIFEST_FILE


@dataclass(frozen=True)
class Chosen:
    """Settings of a command."""

    output: str
    forget: list[str]
    seed: int = 0
    force: bool = False


def result(folder: Path, command: str = "evaluate", key: str = "there") -> Path:
    folder.mkdir(parents=True)
    write_json(folder / MANIFEST_FILE, manifest(command, key, settings={"seed": 0}))
    (folder / "evaluation.json").write_text("old")
    return folder


def test_a_link_is_followed_to_its_end_also_where_nothing_is_there_yet(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "first").symlink_to("disk/second")
    (tmp_path / "disk" / "second").symlink_to("answers.jsonl")
    assert output_place(tmp_path / "first").resolve() == (tmp_path / "disk" / "answers.jsonl").resolve()
    assert output_place(str(tmp_path / "plain")) == tmp_path / "plain"


def test_what_is_neither_file_nor_folder_is_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "circle").symlink_to("back")
    (tmp_path / "back").symlink_to("circle")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket"))
        for given in (tmp_path / "pipe", tmp_path / "link", tmp_path / "socket", Path("/dev/null"), Path("/dev/stdout")):
            with pytest.raises(ArtifactError, match="is not a regular file or folder"):
                output_place(given)
    with pytest.raises(ArtifactError, match="leads back to itself"):
        output_place(tmp_path / "circle")
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "socket").is_socket()


def test_a_file_is_written_where_it_is_new_empty_made_alike_or_forced_and_never_over_an_input(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    check_file(file, made=False, force=False)
    file.touch()
    check_file(file, made=False, force=False)
    file.write_text("mine")
    with pytest.raises(ArtifactError, match=r"did not make it of these inputs; give --force to replace it, or choose another"):
        check_file(file, made=False, force=False)
    check_file(file, made=True, force=False)
    check_file(file, made=False, force=True)
    (tmp_path / "link").symlink_to(file)
    for given in (file, tmp_path / "link"):
        with pytest.raises(ArtifactError, match="is the input; name another file"):
            check_file(file, made=True, force=True, inputs=["hf:not/a/file", given])
    with pytest.raises(ArtifactError, match="is a folder; name another file"):
        check_file(tmp_path, made=True, force=True)


def test_a_manifest_beside_a_file_is_that_of_its_command_or_somebody_s_own(tmp_path: Path) -> None:
    page, note = tmp_path / "page.html", tmp_path / "page.html.manifest.json"
    assert (note_of(page), read_note(page, "report", force=False)) == (note, {})
    note.write_text(json.dumps({"command": "report", "version": "1"}))
    assert read_note(page, "report", force=False) == {"command": "report", "version": "1"}
    for text in (json.dumps({"command": "generate"}), "my notes"):
        note.write_text(text)
        with pytest.raises(ArtifactError, match=r"where the manifest of page\.html goes"):
            read_note(page, "report", force=False)
        assert read_note(page, "report", force=True) == {}
        assert note.read_text() == text


def test_a_page_tells_the_records_that_it_was_made_of(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert not has_mark(page, "report abc")
    page.write_text(with_mark('<head>\n<meta charset="utf-8">\n<title>x</title>\n<meta charset="utf-8">\n', "report abc"))
    assert page.read_text().count("abc") == 1
    assert has_mark(page, "report abc")
    assert not has_mark(page, "report ab")
    page.write_bytes(b"\xff" * 2000 + page.read_bytes())
    assert not has_mark(page, "report abc")


# -- folders ---------------------------------------------------------------------------------------------------------


def test_force_replaces_a_result_whole_and_only_once_the_new_one_is_there(tmp_path: Path) -> None:
    output = result(tmp_path / "result")
    chosen = Chosen(str(output), [], seed=5, force=True)
    with pytest.raises(ArtifactError, match=r"\(seed: 0 there, 5 here\); give --force"):
        is_done(output, "here", Chosen(str(output), [], seed=5))
    assert not is_done(output, "here", chosen)
    with pytest.raises(KeyError), new_result(output, "evaluate", "here", chosen):
        raise KeyError
    assert (output / "evaluation.json").read_text() == "old"
    with new_result(output, "evaluate", "here", chosen) as staged:
        staged.mkdir()
        (staged / "new.json").write_text("new")
    assert sorted(path.name for path in output.iterdir()) == [MANIFEST_FILE, "new.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["result"]
    assert is_done(output, "here", chosen)
    assert "force" not in json.loads((output / MANIFEST_FILE).read_text())["settings"]
    assert kept_settings(chosen) == {"output": str(output), "forget": [], "seed": 5}


def test_force_removes_no_other_files_no_other_results_and_no_input(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "thesis.tex").write_text("mine")
    with pytest.raises(ArtifactError, match="exists and is not an artifact"):
        is_done(own, "here", Chosen(str(own), [], force=True))
    model = result(tmp_path / "model", "calibrate")
    with pytest.raises(ArtifactError, match="holds more than a command's result"):
        is_done(model, "here", Chosen(str(model), [], force=True))
    output = result(tmp_path / "output", "unlearn")
    with pytest.raises(ArtifactError, match=r"holds the input .*evaluation.json, and --force would remove it"):
        is_done(output, "here", Chosen(str(output), ["hf:x", str(output / "evaluation.json")], force=True))
    result(output / "deep" / "after")
    with pytest.raises(ArtifactError, match=r"holds another result, .*after, and --force would remove it"):
        is_done(output, "here", Chosen(str(output), [], force=True))
    assert (output / "evaluation.json").read_text() == "old"


def test_force_takes_an_artifact_and_the_checkpoints_of_another_run(tmp_path: Path) -> None:
    output = result(tmp_path / "artifact", "unlearn")
    (tmp_path / "artifact.partial" / "checkpoints" / "checkpoint-2").mkdir(parents=True)
    with pytest.raises(ArtifactError, match="interrupted run with other inputs"), workspace_of(output, "here"):
        pass
    with workspace_of(output, "here", force=True) as workspace:
        assert not (workspace / "checkpoints").exists()
        publish(result(workspace / "staged", "unlearn", "here"), output, force=True)
    assert json.loads((output / MANIFEST_FILE).read_text())["key"] == "here"
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]
