"""YAML is read as ever, and a few lines cannot stand for a billion values."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from d2unlearn.cli.main import run as run_command
from d2unlearn.config import ServeSettings, load_settings
from d2unlearn.errors import ConfigError
from d2unlearn.yaml_text import MAX_VALUES, read_values

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
)
MERGES = "m0: &m0 {k: 1}\n" + "".join(f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 9)}]}}\n" for i in range(1, 9))


@pytest.mark.parametrize(
    "text", ["", "a", "a: 1\nb: [1, 2.5, null, yes]\n", "x: &x {a: 1}\ny: {<<: *x, b: 2}\nz: [*x, *x]\n", "- - - 1", "1e-3"]
)
def test_values_are_those_of_safe_load(text: str) -> None:
    assert read_values(text) == yaml.safe_load(text)


@pytest.mark.parametrize("text", [BOMB, MERGES], ids=["lists", "merges"])
def test_aliases_that_stand_for_a_billion_values_are_turned_down(text: str) -> None:
    assert len(text) < 700
    with pytest.raises(yaml.YAMLError, match="stand for more than 100000 values"):
        read_values(text)


def test_the_count_is_of_values_with_aliases_written_out() -> None:
    """A document of 1 + 2 keys + (1 + n) + (1 + m(1 + n)) values."""
    one = "[" + ", ".join(["1"] * 99) + "]"

    def with_aliases(count: int) -> str:
        return f"a: &a {one}\nb: [{', '.join(['*a'] * count)}]\n"

    most = (MAX_VALUES - 3 - 100 - 1) // 100
    assert len(read_values(with_aliases(most))["b"]) == most
    with pytest.raises(yaml.YAMLError):
        read_values(with_aliases(most + 1))


def test_an_alias_within_itself_is_turned_down() -> None:
    for text in ("&a [*a]", "a: &a {b: *a}"):
        with pytest.raises(yaml.YAMLError, match="an alias stands within what it names"):
            read_values(text)


def test_a_settings_file_with_a_bomb_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(f"model: x\n{BOMB}")
    with pytest.raises(ConfigError, match="is not valid YAML: its aliases stand for more than 100000 values"):
        load_settings(ServeSettings, file, {})
    monkeypatch.setattr("sys.argv", ["d2unlearn", "serve", "--config", str(file)])
    with pytest.raises(SystemExit) as ended:
        run_command()
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
