"""`d2unlearn unlearn`."""

from __future__ import annotations

import typer

from d2unlearn import commands
from d2unlearn.cli.options import takes
from d2unlearn.config import UnlearnSettings
from d2unlearn.runtime import first_rank

_TARGETS_MISSED = 3
"""Exit code of `--strict` for an artifact that was written and misses a target."""


@takes(UnlearnSettings)
def unlearn(settings: UnlearnSettings) -> None:
    """Remove knowledge from a model: train it until the forget rows lie above their energy bound.

    Example: `d2unlearn unlearn --model ./model --forget forget.jsonl --retain retain.jsonl --output ./artifact`
    """
    if settings.plan:
        from d2unlearn.training.plan import plan_unlearn

        typer.echo(plan_unlearn(settings))
        return
    artifact = commands.unlearn(settings)
    if first_rank():
        typer.echo(artifact)
    if settings.strict:
        from d2unlearn.training.steered_run import missed_targets

        if missed_targets(artifact):
            raise typer.Exit(_TARGETS_MISSED)
