"""`d2unlearn data make` and `d2unlearn data check`."""

from __future__ import annotations

import typer

from d2unlearn import commands
from d2unlearn.cli.options import OnceEach, VerbGroup, takes
from d2unlearn.config import CheckSettings, MakeSettings

data_app = typer.Typer(cls=VerbGroup, help="Make data sets, and look at them before using them.", no_args_is_help=True)


@data_app.callback()
def data() -> None:
    """Make data sets, and look at them before using them."""


@data_app.command(cls=OnceEach)
@takes(MakeSettings)
def make(settings: MakeSettings) -> None:
    """Make all files from the name of a topic: the model is asked, and what it knows is to be forgotten.

    Example: `d2unlearn data make --model ./model --topic "France" --output data`
    """
    commands.make_data(settings, tell=typer.echo)


@data_app.command(cls=OnceEach)
@takes(CheckSettings, quiet=False)
def check(settings: CheckSettings) -> None:
    """Say what was read, show one rendered row with its answer marked, find duplicates and overlap, and what is lacking.

    Example: `d2unlearn data check --forget forget.jsonl --retain retain.jsonl --model ./model`
    """
    if settings.model is not None:
        from d2unlearn.models import quiet_transformers

        quiet_transformers()
    commands.check_data(settings, tell=typer.echo)
