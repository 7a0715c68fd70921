"""Headings of one's own, from the command line to the rows."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from d2unlearn.cli.main import app


@pytest.mark.parametrize("given", [["question=Frage,answer=Antwort"], ["question=Frage", "answer=Antwort"]])
def test_headings_are_given_at_once_or_one_by_one(tmp_path: Path, given: list[str]) -> None:
    (tmp_path / "f.csv").write_text("Frage;Antwort\nWer?;Ich.\nWo?;Hier.\n", encoding="utf-8")
    options = [word for pair in given for word in ("--columns", pair)]
    shown = CliRunner().invoke(app, ["data", "check", "--forget", str(tmp_path / "f.csv"), *options])
    assert (shown.exit_code, shown.output.splitlines()[0]) == (0, "forget: 2 rows, 2 with a prompt, 0 groups")
