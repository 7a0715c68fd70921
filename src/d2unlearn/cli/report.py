"""`d2unlearn report`."""

from __future__ import annotations

import typer


def report(
    before: str = typer.Option(..., help="evaluation.json (or its folder) of the original model."),
    after: str = typer.Option(..., help="evaluation.json (or its folder) of the unlearned model."),
    artifact: str = typer.Option(None, help="The artifact: its gate and manifest are shown."),
    output: str = typer.Option("report.html", help="Where the page goes."),
) -> None:
    """Draw one self-contained HTML page from two evaluations.

    Example: `d2unlearn report --before ./before --after ./after --artifact ./artifact --output report.html`
    """
    from d2unlearn.report.run import run_report

    typer.echo(run_report(before, after, artifact, output))
