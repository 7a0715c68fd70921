"""`d2unlearn evaluate`."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from d2unlearn import commands
from d2unlearn.cli.options import takes
from d2unlearn.config import BenchmarkSettings, EvaluateSettings
from d2unlearn.schema import MetricResult


@takes(EvaluateSettings, instead={"benchmark": BenchmarkSettings})
def evaluate(settings: EvaluateSettings | BenchmarkSettings) -> None:
    """Measure what a model still knows, how energies separate, and what the gate refuses.

    Example: `d2unlearn evaluate --model ./artifact --forget forget.jsonl --retain test.jsonl --output ./after`

    Or a benchmark: `d2unlearn evaluate --model ./artifact --benchmark tofu --data ./tofu --output ./tofu-after`
    """
    path = commands.evaluate(settings)
    from d2unlearn.serialization import read_evaluation

    result = read_evaluation(path)
    from d2unlearn.report.summary import verdict_of

    if verdict := verdict_of(result):
        typer.echo(f"verdict: {verdict}")
    if result.benchmark:
        typer.echo(f"{result.benchmark}, counted by the convention {result.convention}")
        _print(result.suite)
    for evaluated in result.sets:
        typer.echo(f"{evaluated.name} ({evaluated.kind}, n = {len(evaluated.examples)})")
        _print(evaluated.metrics)
    if result.separation:
        typer.echo("separation of forget from retained requests")
        _print(result.separation)
    for warning in result.warnings:
        typer.echo(f"warning: {warning}")
    typer.echo(path)


def _print(metrics: Sequence[MetricResult]) -> None:
    for metric in metrics:
        typer.echo(_line(metric))


def _line(metric: MetricResult) -> str:
    unscored = f"  ({metric.unscored} not scored)" if metric.unscored else ""
    if not metric.n:
        return f"  {metric.name:26s} {metric.reason or 'nothing to score'}{unscored}"
    better = "" if metric.better == "neither" else f"  {metric.better} is better"
    return f"  {metric.name:26s} {metric.value:7.4f}  [{metric.low:.4f}, {metric.high:.4f}]{better}{unscored}"
