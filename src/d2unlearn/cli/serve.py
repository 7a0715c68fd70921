"""`d2unlearn serve`."""

from __future__ import annotations

import typer

from d2unlearn.cli.options import CONFIG, DTYPE, needs_extra
from d2unlearn.config import ServeSettings, load_settings


def serve(
    model: str = typer.Option(None, help="An artifact with a calibrated gate."),
    host: str = typer.Option(None, help="Address to listen on.  [default: 127.0.0.1, this machine alone]"),
    port: int = typer.Option(None, help="Port to listen on; 0: any that is free.  [default: 8000]"),
    name: str = typer.Option(None, help="What the model is called.  [default: its folder]"),
    raw: bool = typer.Option(None, "--raw", help="Serve without the gate; every answer says so."),
    dtype: str = DTYPE,
    max_new_tokens: int = typer.Option(None, help="Longest answer.  [default: what the gate was calibrated for; raw 128]"),
    max_prompt_tokens: int = typer.Option(None, help="Longest prompt.  [default: what the context leaves, at most 4096]"),
    max_body_bytes: int = typer.Option(None, help="Largest request.  [default: 1000000]"),
    batch_size: int = typer.Option(None, help="Requests answered together.  [default: 16]"),
    queue: int = typer.Option(None, help="Requests that may wait; beyond, 503.  [default: 256]"),
    connections: int = typer.Option(None, help="Connections open at once; beyond, 503.  [default: 2048]"),
    timeout: float = typer.Option(None, help="Seconds until a request is given up, 504.  [default: 120]"),
    stop_timeout: float = typer.Option(None, help="Seconds that running requests have to finish at a stop.  [default: 20]"),
    hold_back: int = typer.Option(None, help="Tokens that a stream stays behind, so that late refusals leak less."),
    api_keys: str = typer.Option(None, metavar="FILE", help="One key a line; a request has to bring one of them."),
    hide_energy: bool = typer.Option(None, "--hide-energy", help="Show no energies to clients, who could search by them."),
    log_prompts: bool = typer.Option(None, "--log-prompts", help="Log what is asked.  [default: never]"),
    config: str = CONFIG,
) -> None:
    """Serve the guarded model with OpenAI's HTTP interface.

    Example: `d2unlearn serve --model ./artifact`, then `OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")`
    """
    given = {key: value for key, value in locals().items() if key != "config"}
    settings = load_settings(ServeSettings, config, given)
    with needs_extra("serve"):
        from d2unlearn.serving.run import run_serve
    from d2unlearn.models import quiet_transformers

    quiet_transformers()
    run_serve(settings)
