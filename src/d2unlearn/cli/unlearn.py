"""`d2unlearn unlearn`."""

from __future__ import annotations

import typer

from d2unlearn.cli.options import CONFIG, DTYPE, GROUP_SIZE, SEED, typed_pairs
from d2unlearn.config import UnlearnSettings, load_settings


def unlearn(
    model: str = typer.Option(None, help="Model folder or hub name."),
    forget: str = typer.Option(None, help="What to remove: JSONL, JSON, CSV, Parquet, a saved data set, or hf:NAME."),
    retain: str = typer.Option(None, help="What to keep; some rows are set aside: a tenth, at least 400, at most half."),
    output: str = typer.Option(None, help="Folder for the artifact."),
    method: str = typer.Option(None, help="Unlearning method (docs/methods.md).  [default: eua]"),
    alternate: str = typer.Option(
        None, help="Other answers, for methods that train them: refusals as .txt, or rows with the same questions."
    ),
    parameters: list[str] = typer.Option(
        None, "--set", metavar="KEY=VALUE", help="A parameter of the method (in a file: method_parameters); repeatable."
    ),
    learning_rate: str = typer.Option(None, help="A number, or auto: from the model's size.  [default: auto]"),
    epochs: str = typer.Option(None, help="Passes over the forget rows, or auto: 10, more for few.  [default: auto]"),
    batch_size: int = typer.Option(None, help="Forget rows a step and device, with as many retained.  [default: 8]"),
    accumulation: str = typer.Option(None, help="Batches that make one update, or auto: 1 to 4 by size.  [default: auto]"),
    max_length: int = typer.Option(None, help="Rows are cut there, in tokens, or at the model's context.  [default: 512]"),
    seed: int = SEED,
    lora: bool = typer.Option(None, "--lora/--full", help="Train a low-rank adapter; its merged weights are written too."),
    lora_rank: int = typer.Option(None, help="Rank of the adapter.  [default: 16]"),
    dtype: str = DTYPE,
    bf16: bool = typer.Option(None, "--bf16/--no-bf16", help="Mixed precision."),
    gradient_checkpointing: bool = typer.Option(
        None, "--gradient-checkpointing/--no-gradient-checkpointing", help="Less memory, more time."
    ),
    exclude_padded_rows: bool = typer.Option(
        None, "--exclude-padded-rows/--all-rows", help="Leave vocabulary rows the tokenizer lacks out of energies."
    ),
    keep: str = typer.Option(
        None, help="best: the epoch that erased and kept most, by rows set aside; last: as training ends.  [default: best]"
    ),
    report_to: str = typer.Option(None, help="wandb, tensorboard, ..., as in transformers.  [default: none]"),
    group_size: int = GROUP_SIZE,
    config: str = CONFIG,
) -> None:
    """Remove knowledge from a model: train it until the forget rows lie above their energy bound.

    Example: `d2unlearn unlearn --model ./model --forget forget.jsonl --retain retain.jsonl --output ./artifact`
    """
    given = {key: value for key, value in locals().items() if key not in ("config", "parameters")}
    given["method_parameters"] = typed_pairs(parameters, "--set")
    settings = load_settings(UnlearnSettings, config, given)
    from d2unlearn.models import quiet_transformers
    from d2unlearn.training.unlearn import run_unlearn

    quiet_transformers()
    typer.echo(run_unlearn(settings))
