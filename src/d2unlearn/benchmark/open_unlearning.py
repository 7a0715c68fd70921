"""open-unlearning's result files, read and written: `TOFU_EVAL.json`, `TOFU_SUMMARY.json`, and `MUSE_*`.

    EVAL      {key: {"agg_value": number or null, "value_by_index": {"0": {...}, ...}}}, a membership attack with `forget` and
              `holdout` of that form beside its `auc`
    SUMMARY   {key: number}

Logs of retain models that others published are read here, and ours serve there. A file in our own convention says
so under the key `d2unlearn`, which open-unlearning passes over.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from d2unlearn.benchmark.conventions import OPEN_UNLEARNING, Convention
from d2unlearn.benchmark.metrics import MetricValue
from d2unlearn.benchmark.suites import Suite
from d2unlearn.errors import ArtifactError, DataError
from d2unlearn.runtime import atomic_write, read_json

CONVENTION_KEY = "d2unlearn"


def eval_file(suite: Suite) -> str:
    """The name of the file with every example."""
    return f"{suite.name}_EVAL.json"


def summary_file(suite: Suite) -> str:
    """The name of the file with one number a metric."""
    return f"{suite.name}_SUMMARY.json"


def eval_entries(suite: Suite, computed: Mapping[str, MetricValue], convention: Convention) -> dict[str, Any]:
    """The content of the file with every example, keys in order."""
    entries = {key: _entry(value) for key, value in computed.items() if key not in suite.own}
    if convention != OPEN_UNLEARNING:
        entries[CONVENTION_KEY] = {"agg_value": None, "convention": convention.name}
    return dict(sorted(entries.items()))


def summary_entries(suite: Suite, computed: Mapping[str, MetricValue]) -> dict[str, float]:
    """The content of the file with one number a metric; what could not be scored is left out, as there."""
    numbers = {key: computed[key].value for key in suite.summary if key in computed}
    return dict(sorted((key, value) for key, value in numbers.items() if not math.isnan(value)))


def write_entries(path: Path, entries: Mapping[str, Any]) -> None:
    """Write one of the two files as open-unlearning does: indented by four."""
    atomic_write(path, json.dumps(entries, indent=4, allow_nan=False))


def read_logs(path: str | Path, suite: Suite) -> dict[str, Any]:
    """A retain model's logs from an EVAL file, or from a folder that holds one.

    Raises `DataError` for a file that is missing, holds something else, or has scores that are no numbers.
    """
    file = Path(path) / eval_file(suite) if Path(path).is_dir() else Path(path)
    try:
        logs = read_json(file)
    except (ArtifactError, OSError) as error:
        advice = f"--retain-logs takes the {eval_file(suite)} of a model that never saw the forget set"
        raise DataError(f"{error}; {advice}") from None
    for key, entry in logs.items():
        if not isinstance(entry, dict) or not _is_number(entry.get("agg_value")):
            raise DataError(f"{file}: {key} should have a number (or null) as agg_value; is it a {eval_file(suite)}?")
        records = entry.get("value_by_index") or {}
        if not isinstance(records, dict):
            raise DataError(f"{file}: {key}: value_by_index should be an object, not {type(records).__name__}")
        for index, record in records.items():
            if not isinstance(record, dict) or not _is_number(record.get("score")):
                raise DataError(f"{file}: {key}, example {index}: score should be a number (or null)")
    return logs


def logged_convention(logs: Mapping[str, Any]) -> str:
    """The name of the convention that logs are in: open-unlearning's unless they say otherwise."""
    return str((logs.get(CONVENTION_KEY) or {}).get("convention", OPEN_UNLEARNING.name))


def _entry(value: MetricValue) -> dict[str, Any]:
    number = _plain(value.value)
    if value.parts:
        return {**{side: _entry(part) for side, part in value.parts.items()}, "auc": number, "agg_value": number}
    if not value.records:
        return {"agg_value": number}
    return {"agg_value": number, "value_by_index": {str(i): _plain(record) for i, record in enumerate(value.records)}}


def _plain(value: Any) -> Any:
    """NaN as null, in numbers and in what holds them."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
