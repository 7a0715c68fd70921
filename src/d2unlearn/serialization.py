"""An `Evaluation` as JSON and back, exactly: the file `evaluation.json` that `evaluate` writes and `report` draws from.

A number that could not be scored is NaN in memory and null in the file. Infinite numbers, which JSON lacks, are the
strings "inf" and "-inf"; a field that may be absent (`float | None`) keeps null for None and takes "nan" for NaN.
A field that came later and has a default may be absent. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from d2unlearn.errors import ArtifactError, DataError
from d2unlearn.runtime import read_json, write_json
from d2unlearn.schema import Evaluation

_R = TypeVar("_R")
_VERSION = 1
_ADVICE = "give the evaluation.json that `d2unlearn evaluate` wrote"


def evaluation_to_json(evaluation: Evaluation) -> dict[str, Any]:
    """The evaluation as a JSON object: dicts, lists, strings, finite numbers, booleans and None only.

    Raises `DataError` when `settings` holds something that JSON has no word for.
    """
    return record_to_json(evaluation, "evaluation")


def evaluation_from_json(value: object, source: str = "the evaluation") -> Evaluation:
    """The inverse of `evaluation_to_json`. Sequences within `settings` come back as lists.

    Raises `DataError`, naming `source` and the field, when the value is not an evaluation of this version.
    """
    if not isinstance(value, dict) or "version" not in value:
        raise DataError(f"{source} is not an evaluation: it has no version; {_ADVICE}")
    if value["version"] != _VERSION:
        raise DataError(
            f"{source} is an evaluation of version {value['version']!r}, this program reads version {_VERSION}; "
            "run `d2unlearn evaluate` again"
        )
    return record_from_json(Evaluation, value, source, "an evaluation", _ADVICE)


def record_to_json(record: object, name: str) -> dict[str, Any]:
    """A frozen dataclass of such values as a JSON object. `name` begins the place that a `DataError` names."""
    return cast(dict[str, Any], _encode(record, type(record), name))


def record_from_json(kind: type[_R], value: object, source: str, what: str, advice: str) -> _R:
    """The inverse of `record_to_json`. Raises `DataError` (`source` is not `what`: ...; `advice`) for another object."""
    try:
        return cast(_R, _decode(value, kind, what.split()[-1]))
    except _Misfit as misfit:
        raise DataError(f"{source} is not {what}: {misfit}; {advice}") from None


def write_evaluation(path: str | Path, evaluation: Evaluation) -> None:
    """Write the evaluation's file, whole or not at all. Raises `ArtifactError` when it cannot be written."""
    write_json(Path(path), evaluation_to_json(evaluation))


def read_evaluation(path: str | Path) -> Evaluation:
    """Read an evaluation's file. Raises `DataError` when it is missing, cut short, or holds something else."""
    try:
        value = read_json(Path(path))
    except ArtifactError as error:
        raise DataError(f"{error}; {_ADVICE}") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; {_ADVICE}") from None
    return evaluation_from_json(value, str(path))


class _Misfit(Exception):
    """A value that is not of the field's type; the text names the field."""


@cache
def _hints(kind: type) -> dict[str, Any]:
    """The types of a dataclass's fields, looked up once a class: a result has thousands of records."""
    return get_type_hints(kind)


def _encode(value: Any, kind: Any, where: str) -> Any:
    if is_dataclass(kind):
        hints = _hints(kind)  # type: ignore[arg-type]
        return {f.name: _encode(getattr(value, f.name), hints[f.name], f"{where}.{f.name}") for f in fields(kind)}
    if get_origin(kind) is tuple:
        return [_encode(item, get_args(kind)[0], f"{where}[{i}]") for i, item in enumerate(value)]
    if _is_mapping(kind):
        return {str(k): _encode(item, get_args(kind)[1], f"{where}.{k}") for k, item in value.items()}
    if kind is object:
        return _encode_free(value, where)
    if isinstance(value, float):
        return _encode_number(value, nan=None if kind is float else "nan")
    return value


def _encode_free(value: object, where: str) -> Any:
    """A value of a field without a type of its own (`settings`)."""
    if isinstance(value, Mapping):
        return {str(k): _encode_free(item, f"{where}.{k}") for k, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [_encode_free(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, float):
        return _encode_number(value, nan=None)
    if value is None or isinstance(value, (str, int)):
        return value
    raise DataError(f"{where} holds a {type(value).__name__}, which JSON cannot; store its text instead")


def _encode_number(value: float, nan: str | None) -> float | str | None:
    if math.isnan(value):
        return nan
    return float(value) if math.isfinite(value) else str(float(value))


def _decode(value: Any, kind: Any, where: str) -> Any:
    if is_dataclass(kind):
        return _decode_record(value, cast(type[object], kind), where)
    if get_origin(kind) is tuple:
        items = _require(value, list, "a list", where)
        return tuple(_decode(item, get_args(kind)[0], f"{where}[{i}]") for i, item in enumerate(items))
    if _is_mapping(kind):
        entries = _require(value, dict, "an object", where)
        return {k: _decode(item, get_args(kind)[1], f"{where}.{k}") for k, item in entries.items()}
    if kind is object:
        return value
    if isinstance(kind, UnionType) or get_origin(kind) is Union:  # `Literal[...] | None` is the latter
        return _decode_union(value, kind, where)
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise _Misfit(f"{where} should be one of {', '.join(get_args(kind))}, not {value!r}")
        return value
    return _decode_number(value, where) if kind is float else _decode_plain(value, kind, where)


def _decode_record(value: Any, kind: type[_R], where: str) -> _R:
    entries, hints = _require(value, dict, "an object", where), _hints(kind)  # type: ignore[arg-type]
    names = [f.name for f in fields(cast(Any, kind))]
    needed = [f.name for f in fields(cast(Any, kind)) if f.default is MISSING and f.default_factory is MISSING]
    if missing := [name for name in needed if name not in entries]:
        raise _Misfit(f"{where} lacks {', '.join(missing)}")
    if unknown := [str(name) for name in entries if name not in names]:
        raise _Misfit(f"{where} has unknown {', '.join(unknown)}")
    return kind(**{name: _decode(entries[name], hints[name], f"{where}.{name}") for name in names if name in entries})


def _decode_number(value: Any, where: str) -> float:
    if value is None or value in ("nan", "inf", "-inf"):
        return math.nan if value is None else float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _Misfit(f"{where} should be a number, not {value!r}")
    return float(value)


def _decode_plain(value: Any, kind: type[object], where: str) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise _Misfit(f"{where} should be {kind.__name__}, not {value!r}")
    return value


def _require(value: Any, kind: type[_R], said: str, where: str) -> _R:
    if not isinstance(value, kind):
        raise _Misfit(f"{where} should be {said}, not {type(value).__name__}")
    return value


def _decode_union(value: Any, kind: Any, where: str) -> Any:
    """Of an optional field, or one of several plain types."""
    if NoneType in get_args(kind):
        return None if value is None else _decode(value, next(part for part in get_args(kind) if part is not NoneType), where)
    if not isinstance(value, get_args(kind)):
        raise _Misfit(f"{where} should be one of {', '.join(part.__name__ for part in get_args(kind))}, not {value!r}")
    return value


def _is_mapping(kind: Any) -> bool:
    return get_origin(kind) is Mapping
