"""`d2unlearn unlearn`."""

from __future__ import annotations

import typer

from d2unlearn.cli.options import takes
from d2unlearn.config import UnlearnSettings


@takes(UnlearnSettings)
def unlearn(settings: UnlearnSettings) -> None:
    """Remove knowledge from a model: train it until the forget rows lie above their energy bound.

    Example: `d2unlearn unlearn --model ./model --forget forget.jsonl --retain retain.jsonl --output ./artifact`
    """
    if settings.plan:
        from d2unlearn.training.plan import plan_unlearn

        typer.echo(plan_unlearn(settings))
        return
    from d2unlearn.training.unlearn import run_unlearn

    typer.echo(run_unlearn(settings))
