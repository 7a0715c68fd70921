"""`d2unlearn data make` and `d2unlearn data check`."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from d2unlearn.cli.options import OnceEach, VerbGroup, takes
from d2unlearn.config import CheckSettings, MakeSettings

data_app = typer.Typer(cls=VerbGroup, help="Make data sets, and look at them before using them.", no_args_is_help=True)
SHOWN = 5


@data_app.callback()
def data() -> None:
    """Make data sets, and look at them before using them."""


@data_app.command(cls=OnceEach)
@takes(MakeSettings)
def make(settings: MakeSettings) -> None:
    """Make all files from the name of a topic: the model is asked, and what it knows is to be forgotten.

    Example: `d2unlearn data make --model ./model --topic "France" --output data`
    """
    from d2unlearn.topic.run import run_make

    for line in run_make(settings):
        typer.echo(line)


@data_app.command(cls=OnceEach)
@takes(CheckSettings, quiet=False)
def check(settings: CheckSettings) -> None:
    """Say what was read, show one rendered row with its answer marked, find duplicates and overlap, and what is lacking.

    Example: `d2unlearn data check --forget forget.jsonl --retain retain.jsonl --model ./model`
    """
    from d2unlearn.data.check import inspect, marked, needs, not_known, overlaps, read_sets_of, too_long

    template, context = None, None
    sets = read_sets_of(settings)
    if settings.model is not None:
        from d2unlearn.data.template import Template
        from d2unlearn.models import context_of, load_tokenizer, quiet_transformers

        quiet_transformers()
        template, context = Template(load_tokenizer(settings.model)), context_of(settings.model)
    for name, examples in sets.items():
        facts = inspect(examples, template)
        tokens = "" if facts.longest is None else f", longest {facts.longest} tokens, {facts.answer_tokens} answer tokens"
        typer.echo(f"{name}: {facts.rows} rows, {facts.with_prompt} with a prompt, {facts.groups} groups{tokens}")
        if template is not None:
            typer.echo(f"  {examples[0].source}: {marked(template.tokens(examples[0]), template)}")
            for line in too_long(name, examples, template, settings.max_length, context):
                typer.echo(f"  {line}")
        _listed("duplicate", facts.duplicates, "no row twice")
    found = overlaps(sets)
    for first, second, shared in found:
        _listed(f"{first} and {second} ask the same", shared, "")
    if len(sets) > 1 and not found:
        typer.echo(f"  {', '.join(list(sets)[:-1])} and {list(sets)[-1]} ask nothing in common")
    for line in (*not_known(settings.data), *needs(sets)):
        typer.echo(line)


def _listed(what: str, rows: Sequence[tuple[str, str]], otherwise: str) -> None:
    if not rows:
        typer.echo(f"  {otherwise}")
    for first, second in rows[:SHOWN]:
        typer.echo(f"  {what}: {first} and {second}")
    if len(rows) > SHOWN:
        typer.echo(f"  and {len(rows) - SHOWN} more")
