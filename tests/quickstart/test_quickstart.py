"""The quickstart's road on a world of few people and a model that is hardly taught: every step, its page, and a second time."""

from __future__ import annotations

import html
from pathlib import Path

import pytest

from cli.command import Ran, d2, refused
from d2unlearn.audit.records import read_audit
from d2unlearn.quickstart import fiction, pretrain
from d2unlearn.quickstart import run as quickstart_run
from d2unlearn.quickstart.fiction import WorldSize
from d2unlearn.quickstart.pretrain import Recipe, Shape
from d2unlearn.runtime import hash_file
from d2unlearn.serialization import read_evaluation

pytestmark = pytest.mark.trains


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Just enough people for the 99 calibration prompts that a rate of 1% needs. Returns the cache's folder."""
    monkeypatch.setitem(fiction.SIZES, "smoke", WorldSize(36, 3, 0.05))
    monkeypatch.setitem(pretrain.RECIPES, "smoke", Recipe(epochs=1, batch_size=64))
    monkeypatch.setattr(pretrain, "SHAPE", Shape(vocabulary=400, width=16, layers=1, heads=2, feed_forward=16))
    monkeypatch.setattr(quickstart_run, "AUDITED", ("layers",))
    monkeypatch.setenv("D2UNLEARN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def quickstart(folder: Path, *options: object) -> Ran:
    return d2("quickstart", "--size", "smoke", "--output", folder, *options)


def test_the_quickstart_walks_every_step_and_prints_its_page_alone_on_the_last_line(small: Path, tmp_path: Path) -> None:
    folder = tmp_path / "quickstart"
    ran = quickstart(folder)
    assert (ran.code, ran.out) == (0, f"{folder / 'report.html'}\n")
    steps = [line for line in ran.err.splitlines() if line[1:2] == "/"]
    assert [line[:3] for line in steps] == ["1/6", "2/6", "3/6", "4/6", "5/6", "6/6"]
    page = (folder / "report.html").read_text(encoding="utf-8")
    audit = read_audit(folder / "audit" / "audit.json")
    assert (audit.level, audit.control) == ("quick", "never_seen")
    assert 'href="audit/audit.html"' in page
    for claim in audit.claims:
        assert claim.why in ran.err
        assert html.unescape(page).count(claim.why) == 1
    after = read_evaluation(folder / "after" / "evaluation.json")
    assert [each.name for each in after.sets][:2] == ["forget", "retain"]
    assert after.max_false_refusal == 0.01
    assert next(path.name for path in (small / "fiction").iterdir()).startswith("smoke-0-")
    written = {path: (hash_file(path), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}
    again = quickstart(folder)
    assert (again.code, again.out) == (ran.code, ran.out)
    assert again.err.count("is done: same inputs, same settings") == 5
    new = {path: (hash_file(path), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}
    assert {path: sha for path, (sha, _) in new.items()} == {path: sha for path, (sha, _) in written.items()}
    touched = {path.relative_to(folder).parts[0] for path in new if new[path] != written[path]}
    assert touched <= {"audit", "data", "report.html", "report.html.manifest.json"}
    assert "holds the result of other inputs or settings" in refused(quickstart(folder, "--seed", 1))


def test_a_size_that_is_not_known_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    assert refused(d2("quickstart", "--size", "huge", "--output", tmp_path / "new")) == (
        "size should be one of default, smoke, not 'huge'"
    )
    assert list(tmp_path.iterdir()) == []
