"""`d2unlearn quickstart`."""

from __future__ import annotations

import typer

from d2unlearn.cli.options import CONFIG, SEED
from d2unlearn.config import QuickstartSettings, load_settings


def quickstart(
    output: str = typer.Option(None, help="Folder for data, models and the report.  [default: runs/quickstart]"),
    size: str = typer.Option(None, help="default, or smoke: the same in a fraction of the time.  [default: default]"),
    seed: int = SEED,
    config: str = CONFIG,
) -> None:
    """The whole way on a small made-up world, without a network: train, unlearn, calibrate, evaluate, report.

    Example: `d2unlearn quickstart --output runs/quickstart`
    """
    given = {key: value for key, value in locals().items() if key != "config"}
    settings = load_settings(QuickstartSettings, config, given)
    from d2unlearn.models import quiet_transformers
    from d2unlearn.quickstart.run import run_quickstart

    quiet_transformers()
    typer.echo(run_quickstart(settings))
