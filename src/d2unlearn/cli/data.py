"""`d2unlearn data check`."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from d2unlearn.cli.options import takes
from d2unlearn.config import CheckSettings

data_app = typer.Typer(help="Look at data sets before using them.", no_args_is_help=True)
SHOWN = 5


@data_app.callback()
def data() -> None:
    """Look at data sets before using them."""


@data_app.command()
@takes(CheckSettings, quiet=False)
def check(settings: CheckSettings) -> None:
    """Say what was read, show one rendered row with its answer marked, and find duplicates and overlap.

    Example: `d2unlearn data check --forget forget.jsonl --retain retain.jsonl --model ./model`
    """
    from d2unlearn.data.check import inspect, marked, shared_questions
    from d2unlearn.data.records import read_examples

    template = None
    if settings.model is not None:
        from d2unlearn.data.template import Template
        from d2unlearn.models import load_tokenizer, quiet_transformers

        quiet_transformers()
        template = Template(load_tokenizer(settings.model))
    sources = {"forget": settings.forget, "retain": settings.retain}
    sets = {
        name: read_examples(source, group_size=settings.group_size) for name, source in sources.items() if source is not None
    }
    for name, examples in sets.items():
        facts = inspect(examples, template)
        tokens = "" if facts.longest is None else f", longest {facts.longest} tokens, {facts.answer_tokens} answer tokens"
        typer.echo(f"{name}: {facts.rows} rows, {facts.with_prompt} with a prompt, {facts.groups} groups{tokens}")
        if template is not None:
            typer.echo(f"  {examples[0].source}: {marked(template.tokens(examples[0]), template)}")
        _listed("duplicate", facts.duplicates, "no row twice")
    if "retain" in sets:
        shared = shared_questions(sets["forget"], sets["retain"])
        _listed("forget and retain ask the same", shared, "forget and retain ask nothing in common")


def _listed(what: str, rows: Sequence[tuple[str, str]], otherwise: str) -> None:
    if not rows:
        typer.echo(f"  {otherwise}")
    for first, second in rows[:SHOWN]:
        typer.echo(f"  {what}: {first} and {second}")
    if len(rows) > SHOWN:
        typer.echo(f"  and {len(rows) - SHOWN} more")
