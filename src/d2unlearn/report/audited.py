"""What a report says of an audit, read from `audit.json` as it stands there: its claims, and where its page lies."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d2unlearn.errors import ArtifactError, DataError
from d2unlearn.runtime import read_json
from d2unlearn.schema import AUDIT_FILE, AUDIT_PAGE, ClaimResult
from d2unlearn.serialization import record_from_json

_ADVICE = "give the audit.json that `d2unlearn audit` wrote, or its folder"


@dataclass(frozen=True)
class AuditSummary:
    """An audit's claims. `level`: how thorough it was; `link`: of its page, seen from the report; empty where there is none."""

    claims: tuple[ClaimResult, ...]
    level: str
    link: str


@dataclass(frozen=True)
class _Told:
    """The fields of `audit.json` that are shown."""

    claims: tuple[ClaimResult, ...]
    level: str


def read_audit_summary(source: str | Path, report: Path, gate: str = "") -> AuditSummary:
    """The audit at `source` (its file or folder), with a link from the page `report` to its page.

    gate: fingerprint of the artifact's gate, empty for none or any. Raises `DataError` for a file that is no audit, and for an
    audit of an artifact with another gate (or other weights, which a gate is bound to).
    """
    file = Path(source) / AUDIT_FILE if Path(source).is_dir() else Path(source)
    try:
        value: Mapping[str, Any] = read_json(file)
    except ArtifactError as error:
        raise DataError(f"{error}; {_ADVICE}") from None
    shown = {name: value[name] for name in ("claims", "level") if name in value}
    told = record_from_json(_Told, shown, str(file), "an audit", _ADVICE)
    if gate and value.get("gate") != gate:
        raise DataError(f"{file} is of an artifact with another gate; run `d2unlearn audit` on this one")
    page = file.with_name(AUDIT_PAGE)
    link = os.path.relpath(page, report.parent).replace(os.sep, "/") if page.is_file() else ""
    return AuditSummary(told.claims, told.level, link)
