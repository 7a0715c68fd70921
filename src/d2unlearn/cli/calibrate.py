"""`d2unlearn calibrate`."""

from __future__ import annotations

import typer

from d2unlearn.cli.options import CONFIG, GROUP_SIZE
from d2unlearn.config import CalibrateSettings, load_settings


def calibrate(
    model: str = typer.Option(None, help="The artifact that `unlearn` wrote, or any model folder."),
    retain: str = typer.Option(None, help="Legitimate requests; of an artifact's own file the rows set aside are used."),
    forget: str = typer.Option(None, help="Requests that should be refused: places the threshold better, reports misses."),
    max_false_refusal: float = typer.Option(
        None, help="The largest share of legitimate requests that may be refused.  [default: 0.01]"
    ),
    confidence: float = typer.Option(
        None, help="Hold the share with this confidence over calibrations, e.g. 0.9, instead of on average."
    ),
    max_new_tokens: int = typer.Option(None, help="Tokens of each answer that the gate watches.  [default: 64]"),
    batch_size: int = typer.Option(None, help="Prompts at once.  [default: 32]"),
    refusal: list[str] = typer.Option(None, help="What a refusal says; repeatable.  [default: a set of natural ones]"),
    score: str = typer.Option(None, help="The request's score; auto measures which is best.  [default: auto]"),
    seed: int = typer.Option(None, help="Seed of everything that is drawn.  [default: the one `unlearn` had, else 0]"),
    group_size: int = GROUP_SIZE,
    config: str = CONFIG,
) -> None:
    """Calibrate the refusal: at most the stated share of legitimate requests is refused, with a finite-sample guarantee.

    Example: `d2unlearn calibrate --model ./artifact --retain retain.jsonl --forget forget.jsonl --max-false-refusal 0.01`
    """
    given = {key: value for key, value in locals().items() if key != "config"}
    settings = load_settings(CalibrateSettings, config, given)
    from d2unlearn.gate.run import run_calibrate
    from d2unlearn.models import quiet_transformers

    quiet_transformers()
    for line in run_calibrate(settings):
        typer.echo(line)
