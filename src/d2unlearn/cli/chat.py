"""`d2unlearn chat`."""

from __future__ import annotations

import io
import sys

import typer

from d2unlearn.cli.options import takes
from d2unlearn.config import GenerateSettings


@takes(GenerateSettings, only=("model", "max_new_tokens", "refusals", "raw", "show_energy", "dtype"))
def chat(settings: GenerateSettings) -> None:
    """Talk to a model, one question at a time. `/energy` shows or hides energies; an empty line or Ctrl-D ends it.

    Example: `d2unlearn chat --model ./artifact --show-energy`
    """
    from d2unlearn.generation.run import describe, open_model

    guarded = open_model(settings)
    shown = settings.show_energy
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # bytes that are no text are asked as a replacement mark
    typer.echo("Ask something. /energy shows or hides energies; an empty line ends.", err=True)
    while True:
        typer.echo("> ", nl=False, err=True)
        try:
            line = "" if sys.stdin is None else sys.stdin.readline().strip()
        except KeyboardInterrupt:
            line = ""
        if not line:
            typer.echo(err=True)
            break
        if line == "/energy":
            shown = not shown
            continue
        (answer,) = guarded.answer([line], max_new_tokens=settings.max_new_tokens, raw=settings.raw)
        typer.echo(answer.text)
        if shown:
            typer.echo(describe(answer), err=True)
