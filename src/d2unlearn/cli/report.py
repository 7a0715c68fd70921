"""`d2unlearn report`."""

from __future__ import annotations

import typer

from d2unlearn.cli.options import CONFIG
from d2unlearn.config import ReportSettings, load_settings


def report(
    before: str = typer.Option(None, help="evaluation.json (or its folder) of the original model."),
    after: str = typer.Option(None, help="evaluation.json (or its folder) of the unlearned model."),
    artifact: str = typer.Option(None, help="The artifact: its gate and manifest are shown."),
    output: str = typer.Option(None, help="Where the page goes.  [default: report.html]"),
    config: str = CONFIG,
) -> None:
    """Draw one self-contained HTML page from two evaluations.

    Example: `d2unlearn report --before ./before --after ./after --artifact ./artifact --output report.html`
    """
    given = {key: value for key, value in locals().items() if key != "config"}
    settings = load_settings(ReportSettings, config, given)
    from d2unlearn.report.run import run_report

    typer.echo(run_report(settings.before, settings.after, settings.artifact, settings.output))
