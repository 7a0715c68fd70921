"""`d2unlearn evaluate`."""

from __future__ import annotations

import typer

from d2unlearn.cli.options import CONFIG, DTYPE, GROUP_SIZE, SEED, pairs
from d2unlearn.config import EvaluateSettings, load_settings
from d2unlearn.schema import Metric


def evaluate(
    model: str = typer.Option(None, help="Model folder; with a gate in it, guarded metrics are measured too."),
    forget: str = typer.Option(None, help="Rows that should be gone."),
    retain: str = typer.Option(None, help="Rows that should have stayed: best ones that training never saw."),
    output: str = typer.Option(None, help="Folder for evaluation.json."),
    also_forget: list[str] = typer.Option(None, metavar="NAME=FILE", help="A further set that should be gone; repeatable."),
    also_retain: list[str] = typer.Option(None, metavar="NAME=FILE", help="A further set to keep; repeatable."),
    label: str = typer.Option(None, help="The model's name in tables.  [default: its folder]"),
    max_new_tokens: int = typer.Option(None, help="Longest answer.  [default: 128]"),
    batch_size: int = typer.Option(None, help="Rows at once.  [default: 32]"),
    limit: int = typer.Option(None, help="At most so many rows of each set."),
    seed: int = SEED,
    dtype: str = DTYPE,
    group_size: int = GROUP_SIZE,
    config: str = CONFIG,
) -> None:
    """Measure what a model still knows, how energies separate, and what the gate refuses.

    Example: `d2unlearn evaluate --model ./artifact --forget forget.jsonl --retain test.jsonl --output ./after`
    """
    given = {key: value for key, value in locals().items() if key not in ("config", "also_forget", "also_retain")}
    given["also_forget"] = pairs(also_forget, "--also-forget")
    given["also_retain"] = pairs(also_retain, "--also-retain")
    settings = load_settings(EvaluateSettings, config, given)
    from d2unlearn.evaluation.runner import run_evaluate
    from d2unlearn.evaluation.store import read_evaluation
    from d2unlearn.models import quiet_transformers

    quiet_transformers()
    path = run_evaluate(settings)
    result = read_evaluation(path)
    for each in result.sets:
        typer.echo(f"{each.name} ({each.kind}, n = {len(each.examples)})")
        for metric in each.metrics:
            typer.echo(_line(metric))
    typer.echo("separation of forget from retained requests")
    for metric in result.separation:
        typer.echo(_line(metric))
    typer.echo(path)


def _line(metric: Metric) -> str:
    unscored = f"  ({metric.unscored} not scored)" if metric.unscored else ""
    if not metric.n:
        return f"  {metric.name:24s} nothing to score{unscored}"
    better = "" if metric.better == "neither" else f"  {metric.better} is better"
    return f"  {metric.name:24s} {metric.value:7.4f}  [{metric.low:.4f}, {metric.high:.4f}]{better}{unscored}"
