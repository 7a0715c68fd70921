"""Terminals of any encoding, closed ones, `--debug`, `-h`, and what to do where memory does not suffice."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from d2unlearn.cli.main import run

from .command import d2, refused
from .conftest import Given, write_rows


def bytes_of(encoding: str, *argv: object) -> bytes:
    """What a command writes to a terminal that knows this encoding alone."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    with (
        patch.object(sys, "argv", ["d2unlearn", *map(str, argv)]),
        patch.object(sys, "stdout", out),
        patch.object(sys, "stderr", err),
        pytest.raises(SystemExit) as ended,
    ):
        run()
    assert ended.value.code == 0
    out.flush()
    return out.buffer.getvalue()


def test_what_a_terminal_cannot_show_is_written_as_an_escape(given: Given, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", [{"question": "Où est né it?", "answer": "À → 東."}])
    command = ("data", "check", "--forget", rows, "--model", given.model)
    assert "⟦" in bytes_of("utf-8", *command).decode()
    assert rb"\u27e6" in bytes_of("latin-1", *command)
    assert b"Usage:" in bytes_of("ascii", "unlearn", "-h")


@pytest.mark.parametrize("command", [(), ("unlearn",), ("data",), ("data", "check")])
def test_a_short_option_helps_too(command: tuple[str, ...]) -> None:
    assert d2(*command, "-h") == d2(*command, "--help")


def words_of(shown: str) -> str:
    """Help without what draws columns and boxes."""
    return " ".join(re.sub(r"[│╭╮╰╯─`]", " ", shown).split())


@pytest.mark.parametrize("columns", [0, 40, 80, 100])
@pytest.mark.parametrize("command", [(), ("unlearn",), ("data",), ("data", "check"), ("serve",)])
def test_help_says_everything_however_narrow_the_terminal(
    command: tuple[str, ...], columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    wide = words_of(d2(*command, "--help").out)
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = d2(*command, "--help").out
    assert "…" not in shown
    flags = re.findall(r"(?<!\S)--[a-z-]+", wide.split("Options", 1)[1])
    assert [flag for flag in flags if flag not in words_of(shown)] == []
    if columns == 40:
        assert [line for line in shown.splitlines() if len(line) > 40 and "--" not in line] == []


def test_help_below_each_other_keeps_its_headings_and_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    shown = d2("unlearn", "--help").out
    assert "\nA recipe that measures:\n  --recipe <str>\n      size: learning rate and epochs by\n" in shown
    shown = d2("--help").out
    assert "\n  chat\n      Talk to a model, one question at a\n      time." in shown


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("d2unlearn eval", ["evaluate"]),
        ("d2unlearn unlearn --keep-", ["--keep-at-least"]),
        ("d2unlearn unlearn --long ", ["split", "cut", "refuse"]),
        ("d2unlearn data make --top", ["--topic"]),
        ("d2unlearn evaluate --benchmark m", ["muse"]),
        ("d2unlearn unlearn --model m", []),  # the shell's own: files
    ],
)
def test_a_shell_completes_commands_options_and_their_words(
    typed: str, offered: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = typed.split(" ")
    for name, value in (("_D2UNLEARN_COMPLETE", "complete_bash"), ("COMP_WORDS", typed), ("COMP_CWORD", str(len(words) - 1))):
        monkeypatch.setenv(name, value)
    assert d2().out.split() == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script_that_asks_the_program(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_D2UNLEARN_COMPLETE", f"source_{shell}")
    ran = d2()
    assert (ran.code, f"_D2UNLEARN_COMPLETE=complete_{shell}" in ran.out, ran.err) == (0, True, "")


def test_debug_shows_the_traceback_before_the_sentence_wherever_it_stands() -> None:
    command = ("data", "check", "--forget", "no.jsonl")
    assert refused(d2(*command)) == "no.jsonl does not exist"
    for given in (("--debug", *command), (*command, "--debug")):
        ran = d2(*given)
        first, *_, last = ran.err.splitlines()
        assert (ran.code, first, last) == (2, "Traceback (most recent call last):", "error: no.jsonl does not exist")


def test_chat_without_a_standard_input_ends_as_at_the_end_of_one(given: Given) -> None:
    typed = ["d2unlearn", "chat", "--model", str(given.model), "--raw"]
    with patch("sys.stdin", None), patch.object(sys, "argv", typed), pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 0


UNLEARN = ("unlearn", "--model", "m", "--forget", "f", "--retain", "r", "--output", "o")


@pytest.mark.parametrize(
    ("verb", "command", "says"),
    [
        (
            "training.unlearn.run_unlearn",
            UNLEARN,
            "a smaller --batch-size, or a smaller --max-length, or --gradient-checkpointing",
        ),
        (
            "training.unlearn.run_unlearn",
            (*UNLEARN, "--batch-size", 1, "--gradient-checkpointing"),
            "a smaller --max-length, or --lora, or --dtype bfloat16",
        ),
        (
            "generation.run.run_generate",
            ("generate", "--model", "m", "--prompt", "it"),
            "a smaller --batch-size, or a smaller --max-new-tokens, or --dtype bfloat16",
        ),
    ],
)
def test_a_lack_of_memory_names_what_saves_some(
    verb: str, command: tuple[object, ...], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_much(*_: Any) -> None:
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
        )

    monkeypatch.setattr(f"d2unlearn.{verb}", too_much)
    assert refused(d2(*command)) == f"out of memory: choose {says}"


def test_a_rank_that_no_layer_has_is_refused() -> None:
    assert refused(d2(*UNLEARN, "--lora", "--lora-rank", 10**9)) == "lora_rank should be between 1 and 4096, not 1000000000"


def test_long_takes_one_of_three_words() -> None:
    assert refused(d2(*UNLEARN, "--long", "shorten")) == "long should be split, cut or refuse, not shorten"
