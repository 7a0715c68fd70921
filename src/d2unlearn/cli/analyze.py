"""`d2unlearn analyze`."""

from __future__ import annotations

import typer

from d2unlearn.cli.options import CONFIG, DTYPE, GROUP_SIZE, SEED, pairs
from d2unlearn.config import AnalyzeSettings, load_settings


def analyze(
    model: str = typer.Option(None, help="Model folder; with a gate in it, the others are compared with its score."),
    forget: str = typer.Option(None, help="Requests that should be gone."),
    retain: str = typer.Option(None, help="Requests that should have stayed: best ones that training never saw."),
    output: str = typer.Option(None, help="Folder for analysis.json and the page, analysis.html."),
    also_forget: list[str] = typer.Option(None, metavar="NAME=FILE", help="A further set that should be gone; repeatable."),
    also_retain: list[str] = typer.Option(None, metavar="NAME=FILE", help="A further set to keep; repeatable."),
    original: str = typer.Option(None, help="The model before unlearning, read beside it."),
    oracle: str = typer.Option(None, help="A model that never saw the forget rows, read beside it."),
    calibration: str = typer.Option(
        None,
        help="Retained requests to fit and to set thresholds on; of an artifact's own file the rows set aside are used.  "
        "[default: half of --retain]",
    ),
    max_new_tokens: int = typer.Option(None, help="Longest answer.  [default: 64]"),
    disturbed: int = typer.Option(None, help="Rows a set to ask again under each disturbance.  [default: 200]"),
    group_size: int = GROUP_SIZE,
    label: str = typer.Option(None, help="The model's name on the page.  [default: its folder]"),
    batch_size: int = typer.Option(None, help="Requests at once.  [default: 32]"),
    limit: int = typer.Option(None, help="At most so many rows of each set."),
    seed: int = SEED,
    dtype: str = DTYPE,
    config: str = CONFIG,
) -> None:
    """Put energy on trial against every other index: how well each tells forgotten requests, at what cost, how steadily.

    Example: `d2unlearn analyze --model ./artifact --forget forget.jsonl --retain test.jsonl --output ./trial`
    """
    given = {key: value for key, value in locals().items() if key not in ("config", "also_forget", "also_retain")}
    given |= {"also_forget": pairs(also_forget, "--also-forget"), "also_retain": pairs(also_retain, "--also-retain")}
    settings = load_settings(AnalyzeSettings, config, given)
    from d2unlearn.analysis.page import write_page
    from d2unlearn.analysis.run import run_analyze
    from d2unlearn.models import quiet_transformers

    quiet_transformers()
    path = run_analyze(settings)
    typer.echo(path)
    typer.echo(write_page(path))
