"""`d2unlearn calibrate`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import typer

from d2unlearn.cli.options import takes
from d2unlearn.config import CalibrateSettings


@takes(CalibrateSettings)
def calibrate(settings: CalibrateSettings) -> None:
    """Calibrate the refusal: at most the stated share of legitimate requests is refused, with a finite-sample guarantee.

    Example: `d2unlearn calibrate --model ./artifact --retain retain.jsonl --forget forget.jsonl --max-false-refusal 0.01`
    """
    from d2unlearn.gate.run import run_calibrate
    from d2unlearn.gate.update import run_update
    from d2unlearn.signing import private_key, sign

    if settings.sign_key is not None:
        private_key(settings.sign_key)  # that it is one is better said now
    run = run_update if settings.update else run_calibrate
    for line in run(replace(settings, sign_key=None)):
        typer.echo(line)
    if settings.sign_key is not None:
        typer.echo(sign(Path(settings.model), settings.sign_key))
