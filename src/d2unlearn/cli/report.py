"""`d2unlearn report`."""

from __future__ import annotations

import typer

from d2unlearn.cli.options import takes
from d2unlearn.config import ReportSettings


@takes(ReportSettings, quiet=False)
def report(settings: ReportSettings) -> None:
    """Draw one self-contained HTML page from two evaluations.

    Example: `d2unlearn report --before ./before --after ./after --artifact ./artifact --output report.html`
    """
    from d2unlearn.report.run import run_report

    typer.echo(
        run_report(
            settings.before,
            settings.after,
            settings.artifact,
            settings.output,
            settings.audit,
            redact=settings.redact,
            force=settings.force,
        )
    )
