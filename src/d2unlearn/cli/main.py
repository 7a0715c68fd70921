"""`d2unlearn`: its verbs, and how an error reaches a person: one sentence, exit code 2, no traceback."""

from __future__ import annotations

import errno
import io
import os
import sys
import traceback
import warnings
from typing import Any

import typer

from d2unlearn.cli.analyze import analyze
from d2unlearn.cli.audit import audit
from d2unlearn.cli.calibrate import calibrate
from d2unlearn.cli.chat import chat
from d2unlearn.cli.compare import compare
from d2unlearn.cli.data import data_app
from d2unlearn.cli.evaluate import evaluate
from d2unlearn.cli.generate import generate
from d2unlearn.cli.options import DEBUG, OnceEach, Told, VerbGroup
from d2unlearn.cli.play import play
from d2unlearn.cli.quickstart import quickstart
from d2unlearn.cli.report import report
from d2unlearn.cli.serve import serve
from d2unlearn.cli.unlearn import unlearn
from d2unlearn.errors import D2Error, out_of_memory
from d2unlearn.runtime import say
from d2unlearn.version import __version__

STOPPED = 130
"""Exit code after Ctrl-C."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
TORCH_CANNOT_WRITE = ("PytorchStreamWriter", "unexpected pos", "iostream error")
"""Words of `torch.save` when a write did not go through; it does not say why."""

app = typer.Typer(
    name="d2unlearn",
    cls=VerbGroup,
    help="Remove knowledge from a language model, let it refuse what was removed, and prove both.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (quickstart, unlearn, calibrate, generate, chat, serve, play, evaluate, analyze, audit, compare, report):
    app.command(cls=OnceEach)(verb)
app.add_typer(data_app, name="data")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
    debug: bool = DEBUG,
) -> None:
    """Remove knowledge from a language model, let it refuse what was removed, and prove both."""


def run() -> None:
    """The console script."""
    told = Told()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what the terminal cannot show
    if os.environ.get("COLUMNS") == "0":
        del os.environ["COLUMNS"]  # a terminal that does not know how wide it is
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            code = app(standalone_mode=False, prog_name="d2unlearn", obj=told)
        except KeyboardInterrupt:
            code = STOPPED
        except Exception as error:
            sentence = _sentence(error)
            if sentence is None:
                raise
            if told.debug:
                traceback.print_exception(error)
            if sentence:
                say(f"error: {sentence}")
            sys.exit(2)
    if code == STOPPED:
        say("stopped; run the same command again to go on")
    sys.exit(code or 0)


def _sentence(error: Exception) -> str | None:
    """What to tell a person of an error; None for one that is the program's own fault, empty when all was said."""
    if isinstance(error, D2Error):
        return " ".join(str(error).split())
    if _disk_full(error):
        return (
            "the disk is full, or a quota or a limit on file sizes is reached; nothing half-written was kept in the output: "
            "free some space and run the command again"
        )
    if out_of_memory(error):
        return "out of memory: choose a smaller --batch-size"
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("d2unlearn"):
        return f"the installation is incomplete, {error.name} is missing: install d2unlearn again (`make install` does it here)"
    if type(error).__name__ == "NoArgsIsHelpError":
        return ""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename} cannot be used: {error.strerror}"
    if hasattr(error, "format_message"):  # typer's own: an unknown option, a value that is no number
        return f"{' '.join(error.format_message().split()).rstrip('.')} (see --help)"
    return None


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning as one line, without the place in the code."""
    say(f"warning: {' '.join(str(message).split())}")


def _disk_full(error: BaseException | None) -> bool:
    """Whether a full disk is behind an error, whichever library met it."""
    while error is not None:
        said = str(error)
        if getattr(error, "errno", None) in FULL or any(os.strerror(code) in said for code in FULL):
            return True
        if isinstance(error, RuntimeError) and any(words in said for words in TORCH_CANNOT_WRITE):
            return True
        error = error.__cause__ or error.__context__
    return False


if __name__ == "__main__":
    run()
