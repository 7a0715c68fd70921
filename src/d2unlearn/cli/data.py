"""`d2unlearn data check`."""

from __future__ import annotations

import typer

from d2unlearn.cli.options import GROUP_SIZE

data_app = typer.Typer(help="Look at data sets before using them.", no_args_is_help=True)
SHOWN = 5


@data_app.callback()
def data() -> None:
    """Look at data sets before using them."""


@data_app.command()
def check(
    forget: str = typer.Option(..., help="Rows to forget."),
    retain: str = typer.Option(None, help="Rows to keep; overlap with the forget rows is listed."),
    model: str = typer.Option(None, help="Model folder whose tokenizer and chat template render the example."),
    group_size: int = GROUP_SIZE,
) -> None:
    """Say what was read, show one rendered row with its answer marked, and find duplicates and overlap.

    Example: `d2unlearn data check --forget forget.jsonl --retain retain.jsonl --model ./model`
    """
    from d2unlearn.data.check import inspect, marked, overlap
    from d2unlearn.data.records import read_examples

    template = None
    if model is not None:
        from d2unlearn.data.template import Template
        from d2unlearn.models import load_tokenizer

        template = Template(load_tokenizer(model))
    sets = {name: read_examples(source, group_size=group_size) for name, source in
            (("forget", forget), ("retain", retain)) if source is not None}
    for name, examples in sets.items():
        found = inspect(examples, template)
        tokens = "" if found.longest is None else f", longest {found.longest} tokens, {found.answer_tokens} answer tokens"
        typer.echo(f"{name}: {found.rows} rows, {found.with_prompt} with a prompt, {found.groups} groups{tokens}")
        if template is not None:
            typer.echo(f"  {examples[0].source}: {marked(template.tokens(examples[0]), template)}")
        _listed("duplicate", found.duplicates)
    if "retain" in sets:
        _listed("forget and retain ask the same", overlap(sets["forget"], sets["retain"]))


def _listed(what: str, places: object) -> None:
    rows = list(places)  # type: ignore[call-overload]
    for first, second in rows[:SHOWN]:
        typer.echo(f"  {what}: {first} and {second}")
    if len(rows) > SHOWN:
        typer.echo(f"  and {len(rows) - SHOWN} more")
