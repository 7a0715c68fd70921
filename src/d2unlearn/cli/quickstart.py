"""`d2unlearn quickstart`."""

from __future__ import annotations

import typer

from d2unlearn import commands
from d2unlearn.cli.options import takes
from d2unlearn.config import QuickstartSettings


@takes(QuickstartSettings)
def quickstart(settings: QuickstartSettings) -> None:
    """The whole way on a small made-up world, or with --real on a pretrained model: unlearn, calibrate, evaluate, report.

    Neither needs a network.

    Example: `d2unlearn quickstart --output runs/quickstart`
    """
    typer.echo(commands.quickstart(settings))
