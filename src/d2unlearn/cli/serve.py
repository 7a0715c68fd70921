"""`d2unlearn serve`."""

from __future__ import annotations

from d2unlearn.cli.options import needs_extra, takes
from d2unlearn.config import ServeSettings


@takes(ServeSettings)
def serve(settings: ServeSettings) -> None:
    """Serve the guarded model with OpenAI's HTTP interface.

    Example: `d2unlearn serve --model ./artifact`, then `OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")`
    """
    with needs_extra("serve"):
        from d2unlearn.serving.run import run_serve

    run_serve(settings)
