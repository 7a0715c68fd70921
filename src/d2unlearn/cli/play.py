"""`d2unlearn play`."""

from __future__ import annotations

import typer

from d2unlearn.cli.options import CONFIG, DTYPE, needs_extra, pairs
from d2unlearn.config import PlaySettings, load_settings


def play(
    model: str = typer.Option(None, help="An artifact with a calibrated gate."),
    original: str = typer.Option(None, help="The model before unlearning.  [default: what the artifact was made from]"),
    port: int = typer.Option(None, help="Port on this machine; 0: any that is free.  [default: 7860]"),
    samples: list[str] = typer.Option(
        None, metavar="NAME=FILE", help="Questions to choose from; repeatable.  [default: the artifact's own rows]"
    ),
    max_new_tokens: int = typer.Option(None, help="Longest answer.  [default: what the gate was calibrated for]"),
    dtype: str = DTYPE,
    config: str = CONFIG,
) -> None:
    """See the gate at work in a browser: the original's, the unlearned and the guarded answer, token by token.

    Example: `d2unlearn play --model runs/quickstart/artifact`
    """
    given = {key: value for key, value in locals().items() if key not in ("config", "samples")}
    given["samples"] = pairs(samples, "--samples")
    settings = load_settings(PlaySettings, config, given)
    with needs_extra("serve"):
        from d2unlearn.serving.playground import run_play
    from d2unlearn.models import quiet_transformers

    quiet_transformers()
    run_play(settings)
