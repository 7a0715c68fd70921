"""`d2unlearn serve`."""

from __future__ import annotations

from d2unlearn import commands
from d2unlearn.cli.options import takes
from d2unlearn.config import ServeSettings


@takes(ServeSettings)
def serve(settings: ServeSettings) -> None:
    """Serve the guarded model with OpenAI's HTTP interface.

    Example: `d2unlearn serve --model ./artifact`, then `OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")`
    """
    commands.serve(settings)
