"""Terminals of any encoding, closed ones, `--debug`, `-h`, and what to do where memory does not suffice."""

from __future__ import annotations

import io
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
