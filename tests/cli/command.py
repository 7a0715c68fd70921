"""The command line in this process, as a person at a terminal meets it: exit code, standard output, standard error."""

from __future__ import annotations

import contextlib
import io
import sys
from typing import NamedTuple
from unittest.mock import patch

from transformers.utils import logging

from d2unlearn.cli.main import run


class Ran(NamedTuple):
    """How a command ended and what it wrote."""

    code: int
    out: str
    err: str


def d2(*argv: object, stdin: str | bytes = "") -> Ran:
    """`d2unlearn ARGV...`. What the program does not expect is raised here, as its traceback would be printed there."""
    out, err = io.StringIO(), io.StringIO()
    typed = io.TextIOWrapper(io.BytesIO(stdin if isinstance(stdin, bytes) else stdin.encode()), encoding="utf-8")
    verbosity, code = logging.get_verbosity(), None
    try:
        with (
            patch.object(sys, "argv", ["d2unlearn", *map(str, argv)]),
            patch.object(sys, "stdin", typed),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            run()
    except SystemExit as ended:
        code = ended.code
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
    return Ran(int(code or 0), out.getvalue(), err.getvalue())


def refused(ran: Ran) -> str:
    """The sentence of a command that was turned down: exit code 2 and one line on the standard error, nothing else there."""
    lines = ran.err.splitlines()
    assert (ran.code, len(lines), lines[0][:7]) == (2, 1, "error: "), ran
    return lines[0].removeprefix("error: ")
