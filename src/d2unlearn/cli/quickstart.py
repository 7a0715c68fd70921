"""`d2unlearn quickstart`."""

from __future__ import annotations

import typer

from d2unlearn.cli.options import takes
from d2unlearn.config import QuickstartSettings


@takes(QuickstartSettings)
def quickstart(settings: QuickstartSettings) -> None:
    """The whole way on a small made-up world, without a network: train, unlearn, calibrate, evaluate, report.

    Example: `d2unlearn quickstart --output runs/quickstart`
    """
    from d2unlearn.quickstart.run import run_quickstart

    typer.echo(run_quickstart(settings))
