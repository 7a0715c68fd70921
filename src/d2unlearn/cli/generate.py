"""`d2unlearn generate`."""

from __future__ import annotations

import typer

from d2unlearn.cli.options import takes
from d2unlearn.config import GenerateSettings


@takes(GenerateSettings)
def generate(settings: GenerateSettings) -> None:
    """Answer requests with the guarded model.

    Example: `d2unlearn generate --model ./artifact --prompt "Who wrote The Glass Orchard?" --show-energy`
    """
    from d2unlearn.generation.run import run_generate

    for line in run_generate(settings):
        typer.echo(line)
