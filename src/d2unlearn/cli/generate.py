"""`d2unlearn generate`."""

from __future__ import annotations

import typer

from d2unlearn import commands
from d2unlearn.cli.options import takes
from d2unlearn.config import GenerateSettings


@takes(GenerateSettings)
def generate(settings: GenerateSettings) -> None:
    """Answer requests with the guarded model.

    Example: `d2unlearn generate --model ./artifact --prompt "Who wrote The Glass Orchard?" --show-energy`
    """
    made = commands.generate(settings, tell=typer.echo)
    if settings.prompt is not None:
        typer.echo(made)
