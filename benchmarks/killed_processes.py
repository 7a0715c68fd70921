"""Processes of `kills.py`: a command, forked from one that has imported everything and killed; a server that is asked."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from d2unlearn.cli.main import run

KILLED = -signal.SIGKILL
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")
"""Python's audit events that change a file, beside opening one to write."""
PROMPTS = ("w10 w11 w12", "w200 w7", "w9 w9 w9 w9")
PATIENCE = 600.0
"""Seconds until a command that does not end is a failure."""


def forked(work: Callable[[], Any], log: Path) -> int:
    """A process that does the work, with what it says in `log`; it ends with the work's exit code. Its id."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        with log.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        try:
            work()
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        except BaseException:
            traceback.print_exc()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    finally:
        os._exit(code)


def command(argv: Sequence[object], die_at: int | None, count_to: Path | None = None) -> Callable[[], None]:
    """The command, killed before its `die_at`-th change of a file; `count_to`: a file that says how many it made."""

    def work() -> None:
        seen = 0

        def note(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if writes or event in CHANGES:
                seen += 1
                if seen == die_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(note)
        sys.argv = ["d2unlearn", *map(str, argv)]
        try:
            run()
        finally:
            if count_to is not None:
                count_to.write_text(str(seen))

    return work


def run_in_child(work: Callable[[], Any], log: Path, kill_after: float | None = None) -> tuple[int, str]:
    """How it ended (-9: killed, here after so many seconds or by itself), and what it said."""
    process, began = forked(work, log), time.monotonic()
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), log.read_text(errors="replace")
        elapsed = time.monotonic() - began
        if elapsed > (PATIENCE if kill_after is None else kill_after):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.002)


# -- a server -----------------------------------------------------------------------------------------------------------


def served(work: Callable[[], None], log: Path, kill_after: float | None) -> tuple[Any, float]:
    """Without a kill: the answers to all prompts. With one: how the server ended, asked without a pause until then. Seconds."""
    process, began = forked(work, log), time.monotonic()
    answers: Any = None
    try:
        port = listening(process, log, began, kill_after)
        if kill_after is None:
            answers = [asked(port, prompt, 30.0) for prompt in PROMPTS]
            return answers, time.monotonic() - began
        for prompt in asking(began, kill_after):
            asked(port, prompt, max(0.01, kill_after - (time.monotonic() - began)))
        return KILLED, time.monotonic() - began
    finally:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


def asking(began: float, until: float) -> Iterator[str]:
    turn = 0
    while time.monotonic() - began < until:
        yield PROMPTS[turn % len(PROMPTS)]
        turn += 1


def listening(process: int, log: Path, began: float, kill_after: float | None) -> int:
    """The port; 0 when the time for the kill came first. Ends the program where the server ended by itself."""
    while True:
        found = re.search(r"listening on http://127\.0\.0\.1:(\d+)/v1", log.read_text() if log.is_file() else "")
        if found:
            return int(found[1])
        if kill_after is not None and time.monotonic() - began > kill_after:
            return 0
        if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            sys.exit(f"the server did not start: {log.read_text()}")
        time.sleep(0.01)


def asked(port: int, prompt: str, seconds: float) -> Any:
    """The text of the answer; None where it did not come in time."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
    try:
        body = json.dumps({"prompt": prompt, "max_tokens": 4})
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        return json.loads(connection.getresponse().read())["choices"][0]["text"]
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
