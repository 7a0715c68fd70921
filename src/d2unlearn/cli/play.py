"""`d2unlearn play`."""

from __future__ import annotations

from d2unlearn.cli.options import needs_extra, takes
from d2unlearn.config import PlaySettings


@takes(PlaySettings)
def play(settings: PlaySettings) -> None:
    """See the gate at work in a browser: the original's, the unlearned and the guarded answer, token by token.

    Example: `d2unlearn play --model runs/quickstart/artifact`
    """
    with needs_extra("serve"):
        from d2unlearn.serving.playground import run_play

    run_play(settings)
