"""`d2unlearn audit`."""

from __future__ import annotations

import typer

from d2unlearn import commands
from d2unlearn.cli.options import takes
from d2unlearn.config import AuditSettings
from d2unlearn.schema import AUDIT_PAGE


@takes(AuditSettings)
def audit(settings: AuditSettings) -> None:
    """Attack an artifact in every way that the field knows, beside the model that never knew, and say what may be claimed.

    Example: `d2unlearn audit --model ./artifact --original ./model --oracle ./never-knew --forget forget.jsonl --retain
    test.jsonl --output ./audit`
    """
    path = commands.audit(settings)
    from d2unlearn.audit.records import read_audit

    record = read_audit(path)
    for claim in record.claims:
        typer.echo(claim.why)
    for warning in record.warnings:
        typer.echo(f"warning: {warning}")
    typer.echo(path)
    typer.echo(path.with_name(AUDIT_PAGE))
