"""`d2unlearn analyze`."""

from __future__ import annotations

import typer

from d2unlearn import commands
from d2unlearn.cli.options import takes
from d2unlearn.config import AnalyzeSettings


@takes(AnalyzeSettings)
def analyze(settings: AnalyzeSettings) -> None:
    """Put energy on trial against every other detector: how well each tells forgotten requests, at what cost, how steadily.

    Example: `d2unlearn analyze --model ./artifact --forget forget.jsonl --retain test.jsonl --output ./trial`
    """
    path = commands.analyze(settings)
    from d2unlearn.analysis.page import PAGE

    typer.echo(path)
    typer.echo(path.with_name(PAGE))
