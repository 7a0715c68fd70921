"""What a page shows of a gate, read from `d2_gate.json` as it stands there: without torch, and without judging the weights."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from d2unlearn.errors import DataError
from d2unlearn.runtime import read_json
from d2unlearn.schema import GATE_FILE, GateSummary, Interval


def read_gate_summary(artifact: Path) -> GateSummary | None:
    """The gate of an artifact; None when it has none. Raises `DataError` for a file that is not a gate's."""
    path = artifact / GATE_FILE
    if not path.is_file():
        return None
    gate = read_json(path)
    try:
        given: dict[str, Any] = {field.name: gate[field.name] for field in fields(GateSummary)}
        for name in ("miss_rate", "false_refusal"):
            given[name] = None if given[name] is None else Interval(*given[name])
        for name in ("retain_scores", "forget_scores"):
            given[name] = tuple(given[name])
        return GateSummary(**given)
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} is not a gate's file ({error}); run `d2unlearn calibrate` again") from None
