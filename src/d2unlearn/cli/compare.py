"""`d2unlearn compare`."""

from __future__ import annotations

import typer

from d2unlearn import commands
from d2unlearn.cli.options import takes
from d2unlearn.config import CompareSettings


@takes(CompareSettings)
def compare(settings: CompareSettings) -> None:
    """Tune every method alike, evaluate it once on test questions, and put all of them side by side.

    Safe to kill and to start several times over: what is done is not done twice, and processes share the work.

    Example: `d2unlearn compare --config comparison.yaml --jobs 2`
    """
    commands.compare(settings, tell=typer.echo)
