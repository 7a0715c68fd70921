"""`d2unlearn generate`."""

from __future__ import annotations

import typer

from d2unlearn.cli.options import CONFIG, DTYPE, SEED
from d2unlearn.config import GenerateSettings, load_settings


def generate(
    model: str = typer.Option(None, help="An artifact with a calibrated gate."),
    prompt: str = typer.Option(None, help="One request; its answer goes to the standard output."),
    input: str = typer.Option(None, metavar="FILE.jsonl", help="Rows with a `prompt` to answer; other fields are kept."),
    output: str = typer.Option(None, metavar="FILE.jsonl", help="Adds text, refused, energy and threshold to each row."),
    max_new_tokens: int = typer.Option(None, help="Longest answer.  [default: what the gate was calibrated for; raw 128]"),
    raw: bool = typer.Option(None, "--raw", help="Answer without the gate."),
    show_energy: bool = typer.Option(None, "--show-energy", help="Print energy, threshold and decision too."),
    sample: bool = typer.Option(None, "--sample/--greedy", help="Draw tokens instead of taking the most likely."),
    temperature: float = typer.Option(None, help="With --sample.  [default: 1]"),
    top_p: float = typer.Option(None, help="With --sample.  [default: 1]"),
    batch_size: int = typer.Option(None, help="Prompts at once.  [default: 16]"),
    seed: int = SEED,
    dtype: str = DTYPE,
    config: str = CONFIG,
) -> None:
    """Answer requests with the guarded model.

    Example: `d2unlearn generate --model ./artifact --prompt "Who wrote The Glass Orchard?" --show-energy`
    """
    given = {key: value for key, value in locals().items() if key != "config"}
    settings = load_settings(GenerateSettings, config, given)
    from d2unlearn.generation.run import run_generate
    from d2unlearn.models import quiet_transformers

    quiet_transformers()
    for line in run_generate(settings):
        typer.echo(line)
