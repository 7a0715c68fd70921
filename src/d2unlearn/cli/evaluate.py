"""`d2unlearn evaluate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from d2unlearn.cli.options import CONFIG, DTYPE, GROUP_SIZE, SEED, pairs
from d2unlearn.config import BenchmarkSettings, EvaluateSettings, holds, load_settings
from d2unlearn.schema import MetricResult

BENCHMARK = "A benchmark of the field"


def evaluate(
    model: str = typer.Option(None, help="Model folder; with a gate in it, guarded metrics are measured too."),
    forget: str = typer.Option(None, help="Rows that should be gone."),
    retain: str = typer.Option(None, help="Rows that should have stayed: best ones that training never saw."),
    output: str = typer.Option(None, help="Folder for evaluation.json."),
    also_forget: list[str] = typer.Option(None, metavar="NAME=FILE", help="A further set that should be gone; repeatable."),
    also_retain: list[str] = typer.Option(None, metavar="NAME=FILE", help="A further set to keep; repeatable."),
    max_new_tokens: int = typer.Option(None, help="Longest answer.  [default: 128]"),
    group_size: int = GROUP_SIZE,
    label: str = typer.Option(None, help="The model's name in tables.  [default: its folder]"),
    batch_size: int = typer.Option(None, help="Rows at once.  [default: 32]"),
    limit: int = typer.Option(None, help="At most so many rows of each set."),
    seed: int = SEED,
    dtype: str = DTYPE,
    config: str = CONFIG,
    benchmark: str = typer.Option(None, help="tofu, muse or wmdp, instead of rows.", rich_help_panel=BENCHMARK),
    data: str = typer.Option(None, metavar="FOLDER", help="Its files.  [default: from the hub]", rich_help_panel=BENCHMARK),
    convention: str = typer.Option(
        None, help="How to count: d2unlearn or open-unlearning.  [default: d2unlearn]", rich_help_panel=BENCHMARK
    ),
    retain_logs: str = typer.Option(
        None,
        metavar="FILE",
        help="TOFU_EVAL.json (MUSE_EVAL.json) of a model that never saw the forget set, ours or open-unlearning's.",
        rich_help_panel=BENCHMARK,
    ),
    forget_split: str = typer.Option(None, help="TOFU: forget01, 05 or 10.  [default: forget10]", rich_help_panel=BENCHMARK),
    holdout_split: str = typer.Option(
        None, help="TOFU: rows nobody trained on.  [default: holdout of that size]", rich_help_panel=BENCHMARK
    ),
    question_key: str = typer.Option(
        None, help="TOFU: question or paraphrased_question.  [default: question]", rich_help_panel=BENCHMARK
    ),
    corpus: str = typer.Option(None, help="MUSE: news or books.  [default: news]", rich_help_panel=BENCHMARK),
    part: list[str] = typer.Option(None, help="MUSE: scal or sust, too; repeatable.", rich_help_panel=BENCHMARK),
    task: list[str] = typer.Option(
        None, help="WMDP: any task of lm-eval; repeatable.  [default: the three of WMDP]", rich_help_panel=BENCHMARK
    ),
    gradient_norm: bool = typer.Option(
        None,
        "--gradient-norm/--no-gradient-norm",
        show_default=False,
        help="The attack that needs gradients, a third of the time.  [default: on]",
        rich_help_panel=BENCHMARK,
    ),
    reference_model: str = typer.Option(
        None, help="Model of the same tokenizer for the reference attack.", rich_help_panel=BENCHMARK
    ),
    system_prompt: str = typer.Option(None, help="Begins every conversation.", rich_help_panel=BENCHMARK),
    date_string: str = typer.Option(None, help="The date for chat templates that write one.", rich_help_panel=BENCHMARK),
) -> None:
    """Measure what a model still knows, how energies separate, and what the gate refuses.

    Example: `d2unlearn evaluate --model ./artifact --forget forget.jsonl --retain test.jsonl --output ./after`

    Or a benchmark: `d2unlearn evaluate --model ./artifact --benchmark tofu --data ./tofu --output ./tofu-after`
    """
    given = {key: value for key, value in locals().items() if key not in ("config", "also_forget", "also_retain")}
    given |= {"also_forget": pairs(also_forget, "--also-forget"), "also_retain": pairs(also_retain, "--also-retain")}
    given |= {"parts": given.pop("part"), "tasks": given.pop("task")}
    path = _evaluated(config, {key: value for key, value in given.items() if value is not None})
    from d2unlearn.serialization import read_evaluation

    result = read_evaluation(path)
    if result.benchmark:
        typer.echo(f"{result.benchmark}, counted by the convention {result.convention}")
        _print(result.suite)
    for each in result.sets:
        typer.echo(f"{each.name} ({each.kind}, n = {len(each.examples)})")
        _print(each.metrics)
    if result.separation:
        typer.echo("separation of forget from retained requests")
        _print(result.separation)
    for warning in result.warnings:
        typer.echo(f"warning: {warning}")
    typer.echo(path)


def _evaluated(config: str | None, given: Mapping[str, Any]) -> Path:
    """The result file of rows of one's own, or of a benchmark where one is named."""
    if "benchmark" not in given and not holds(config, "benchmark"):
        settings = load_settings(EvaluateSettings, config, given)
        from d2unlearn.evaluation.runner import run_evaluate
        from d2unlearn.models import quiet_transformers

        quiet_transformers()
        return run_evaluate(settings)
    chosen = load_settings(BenchmarkSettings, config, given)
    from d2unlearn.benchmark.run import run_benchmark
    from d2unlearn.models import quiet_transformers

    quiet_transformers()
    if chosen.benchmark == "wmdp":
        from d2unlearn.benchmark.lm_tasks import run_tasks

        return run_tasks(chosen)
    return run_benchmark(chosen)


def _print(metrics: Sequence[MetricResult]) -> None:
    for metric in metrics:
        typer.echo(_line(metric))


def _line(metric: MetricResult) -> str:
    unscored = f"  ({metric.unscored} not scored)" if metric.unscored else ""
    if not metric.n:
        return f"  {metric.name:26s} {metric.reason or 'nothing to score'}{unscored}"
    better = "" if metric.better == "neither" else f"  {metric.better} is better"
    return f"  {metric.name:26s} {metric.value:7.4f}  [{metric.low:.4f}, {metric.high:.4f}]{better}{unscored}"
