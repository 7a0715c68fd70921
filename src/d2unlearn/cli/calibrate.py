"""`d2unlearn calibrate`."""

from __future__ import annotations

import typer

from d2unlearn import commands
from d2unlearn.cli.options import takes
from d2unlearn.config import CalibrateSettings


@takes(CalibrateSettings)
def calibrate(settings: CalibrateSettings) -> None:
    """Calibrate the refusal: at most the stated share of legitimate requests is refused, with a finite-sample guarantee.

    Example: `d2unlearn calibrate --model ./artifact --retain retain.jsonl --forget forget.jsonl --max-false-refusal 0.01`
    """
    commands.calibrate(settings, tell=typer.echo)
