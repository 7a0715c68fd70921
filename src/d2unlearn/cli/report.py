"""`d2unlearn report`."""

from __future__ import annotations

import typer

from d2unlearn import commands
from d2unlearn.cli.options import takes
from d2unlearn.config import ReportSettings


@takes(ReportSettings, quiet=False)
def report(settings: ReportSettings) -> None:
    """Draw one self-contained HTML page from two evaluations.

    Example: `d2unlearn report --before ./before --after ./after --artifact ./artifact --output report.html`
    """
    typer.echo(commands.report(settings))
