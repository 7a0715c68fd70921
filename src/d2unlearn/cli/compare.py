"""`d2unlearn compare`."""

from __future__ import annotations

import typer

from d2unlearn.cli.options import CONFIG, DTYPE, needs_extra, pairs, typed_pairs
from d2unlearn.config import CompareSettings, load_settings

TRAINING = "How all of them are trained"
WHERE = "Where runs are done"


def compare(
    model: str = typer.Option(None, help="Model to unlearn, where a split names no other."),
    splits: list[str] = typer.Option(
        None, "--split", metavar="NAME={forget: FILE, retain: FILE, ...}", help="What is forgotten and kept; repeatable."
    ),
    output: str = typer.Option(None, help="Folder for work, tables and pages."),
    results: str = typer.Option(None, metavar="FOLDER", help="One JSON file a run, kept.  [default: results in the output]"),
    methods: list[str] = typer.Option(None, "--method", help="A method to compare; repeatable.  [default: all of them]"),
    guards: list[str] = typer.Option(None, "--guard", help="A guard of untouched weights to compare; repeatable."),
    left_out: list[str] = typer.Option(None, "--left-out", metavar="NAME=WHY", help="Named in the table without numbers."),
    seeds: list[int] = typer.Option(
        None, "--seed", help="Seeds to judge with; repeatable. The first one tunes.  [default: 0 1 2]"
    ),
    trials: int = typer.Option(None, help="Choices of parameters tried for each contestant.  [default: 6]"),
    search: list[str] = typer.Option(
        None, metavar="NAME={beta: [0.1, 1], gamma: 2}", help="Other ranges, or fixed values, of a contestant; repeatable."
    ),
    learning_rate: str = typer.Option(
        None, help="The rate that the search's factors are of.  [default: auto]", rich_help_panel=TRAINING
    ),
    epochs: str = typer.Option(None, help="Passes over the forget rows, or auto.  [default: 5]", rich_help_panel=TRAINING),
    batch_size: int = typer.Option(None, help="Forget rows a step and device.  [default: 8]", rich_help_panel=TRAINING),
    accumulation: str = typer.Option(
        None, help="Batches that make one update.  [default: auto, by size]", rich_help_panel=TRAINING
    ),
    max_length: int = typer.Option(None, help="Longer rows are cut there.  [default: 512]", rich_help_panel=TRAINING),
    lora: bool = typer.Option(None, "--lora/--full", help="Train low-rank adapters.", rich_help_panel=TRAINING),
    lora_rank: int = typer.Option(None, help="Their rank.  [default: 16]", rich_help_panel=TRAINING),
    dtype: str = DTYPE,
    bf16: bool = typer.Option(None, "--bf16/--no-bf16", help="Mixed precision.", rich_help_panel=TRAINING),
    gradient_checkpointing: bool = typer.Option(
        None,
        "--gradient-checkpointing/--no-gradient-checkpointing",
        help="Less memory, more time.",
        rich_help_panel=TRAINING,
    ),
    max_false_refusal: float = typer.Option(None, help="Share that gates and guards may refuse wrongly.  [default: 0.01]"),
    test_rows: int = typer.Option(None, help="Retained rows that only judge, at most a quarter.  [default: 400]"),
    max_new_tokens: int = typer.Option(None, help="Longest answer.  [default: 96]"),
    eval_batch_size: int = typer.Option(None, help="Rows at once when nothing is trained.  [default: 32]"),
    attack_learning_rate: float = typer.Option(None, help="Of relearning; this suits millions of parameters.  [default: 5e-4]"),
    keep_artifacts: bool = typer.Option(None, "--keep-artifacts", help="Keep the trained models too."),
    backend: str = typer.Option(
        None,
        help="process: a command a run; here: in this process; ray: tasks of a cluster.  [default: process]",
        rich_help_panel=WHERE,
    ),
    jobs: int = typer.Option(None, help="Runs at once.  [default: 1]", rich_help_panel=WHERE),
    cpus: float = typer.Option(None, help="Of a Ray cluster, for each run.  [default: 1]", rich_help_panel=WHERE),
    gpus: float = typer.Option(None, help="Likewise.  [default: 0]", rich_help_panel=WHERE),
    launcher: str = typer.Option(
        None, metavar="COMMAND", help="Starts a run in place of python: `accelerate launch ...`.", rich_help_panel=WHERE
    ),
    run: str = typer.Option(
        None, "--run", "--key", metavar="KEY", help="Do this run alone, as any scheduler can.", rich_help_panel=WHERE
    ),
    plan: bool = typer.Option(None, "--plan", help="List all runs and how they stand; do nothing.", rich_help_panel=WHERE),
    config: str = CONFIG,
) -> None:
    """Tune every method alike, judge it once on test questions, and put all of them side by side.

    Safe to kill and to start several times over: what is done is not done twice, and processes share the work.

    Example: `d2unlearn compare --config comparison.yaml --jobs 2`
    """
    mappings = {"splits": splits, "search": search, "left_out": left_out}
    given = {key: value for key, value in locals().items() if key not in ("config", "mappings", *mappings)}
    given |= {"splits": typed_pairs(splits, "--split"), "search": typed_pairs(search, "--search")}
    settings = load_settings(CompareSettings, config, given | {"left_out": pairs(left_out, "--left-out")})
    with needs_extra("compare"):
        from d2unlearn.comparison.run import run_compare
        from d2unlearn.models import quiet_transformers

        quiet_transformers()
        for line in run_compare(settings):
            typer.echo(line)
