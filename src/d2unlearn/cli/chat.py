"""`d2unlearn chat`."""

from __future__ import annotations

import io
import sys

import typer

from d2unlearn.cli.options import CONFIG, DTYPE
from d2unlearn.config import GenerateSettings, load_settings


def chat(
    model: str = typer.Option(None, help="An artifact with a calibrated gate."),
    max_new_tokens: int = typer.Option(None, help="Longest answer.  [default: what the gate was calibrated for; raw 128]"),
    raw: bool = typer.Option(None, "--raw", help="Answer without the gate."),
    show_energy: bool = typer.Option(None, "--show-energy", help="Show energy and decision; /energy switches it."),
    dtype: str = DTYPE,
    config: str = CONFIG,
) -> None:
    """Talk to a model, one question at a time. An empty line or Ctrl-D ends it.

    Example: `d2unlearn chat --model ./artifact --show-energy`
    """
    given = {key: value for key, value in locals().items() if key != "config"}
    settings = load_settings(GenerateSettings, config, given)
    from d2unlearn.generation.run import describe, open_model
    from d2unlearn.models import quiet_transformers

    quiet_transformers()
    guarded = open_model(settings)
    shown = settings.show_energy
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # bytes that are no text are asked as a replacement mark
    typer.echo("Ask something. /energy shows or hides energies; an empty line ends.", err=True)
    while True:
        typer.echo("> ", nl=False, err=True)
        try:
            line = sys.stdin.readline().strip()
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
