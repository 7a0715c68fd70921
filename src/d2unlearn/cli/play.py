"""`d2unlearn play`."""

from __future__ import annotations

from d2unlearn import commands
from d2unlearn.cli.options import takes
from d2unlearn.config import PlaySettings


@takes(PlaySettings)
def play(settings: PlaySettings) -> None:
    """See the gate at work in a browser: the original's, the unlearned and the guarded answer, token by token.

    Example: `d2unlearn play --model runs/quickstart/artifact`
    """
    commands.play(settings)
