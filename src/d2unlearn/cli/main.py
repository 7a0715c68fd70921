"""`d2unlearn`: its verbs, and how an error reaches a person: one sentence, exit code 2, no traceback."""

from __future__ import annotations

import errno
import sys

import typer

from d2unlearn import __version__
from d2unlearn.cli.calibrate import calibrate
from d2unlearn.cli.chat import chat
from d2unlearn.cli.data import data_app
from d2unlearn.cli.evaluate import evaluate
from d2unlearn.cli.generate import generate
from d2unlearn.cli.quickstart import quickstart
from d2unlearn.cli.report import report
from d2unlearn.cli.unlearn import unlearn
from d2unlearn.errors import D2Error
from d2unlearn.runtime import say

app = typer.Typer(
    name="d2unlearn",
    help="Remove knowledge from a language model, let it refuse what was removed, and prove both.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
for verb in (quickstart, unlearn, calibrate, generate, chat, evaluate, report):
    app.command()(verb)
app.add_typer(data_app, name="data")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Remove knowledge from a language model, let it refuse what was removed, and prove both."""


def run() -> None:
    """The console script."""
    try:
        app()
    except D2Error as error:
        say(f"error: {error}")
        sys.exit(2)
    except KeyboardInterrupt:
        say("stopped; run the same command again to go on")
        sys.exit(130)
    except Exception as error:
        if not _disk_full(error):
            raise
        say("error: the disk is full; nothing half-written was kept in the output: free some space and run the command again")
        sys.exit(2)


def _disk_full(error: BaseException | None) -> bool:
    """Whether a full disk is behind an error, whichever library met it."""
    while error is not None:
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


if __name__ == "__main__":
    run()
