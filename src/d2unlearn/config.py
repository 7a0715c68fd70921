"""Run configurations: one frozen dataclass a verb, filled from one YAML file and from the command line over it.

All mistakes are reported together; a key that no field has is refused, with the nearest one named.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from d2unlearn.errors import ConfigError

Settings = TypeVar("Settings")


@dataclass(frozen=True)
class UnlearnSettings:
    """`d2unlearn unlearn`: what to remove from which model, and how."""

    model: str
    forget: str
    retain: str
    output: str
    method: str = "eua"
    method_parameters: dict[str, Any] = field(default_factory=dict)
    learning_rate: float | str = "auto"
    epochs: float = 10.0
    batch_size: int = 8
    accumulation: int = 4
    max_length: int = 512
    seed: int = 0
    lora: bool = False
    lora_rank: int = 16
    dtype: str = "auto"
    bf16: bool = False
    gradient_checkpointing: bool = False
    exclude_padded_rows: bool = False
    report_to: str = "none"
    group_size: int | None = None


@dataclass(frozen=True)
class CalibrateSettings:
    """`d2unlearn calibrate`: the gate of an artifact, from retained prompts that training never saw."""

    model: str
    retain: str
    forget: str | None = None
    max_false_refusal: float = 0.01
    confidence: float | None = None
    max_new_tokens: int = 64
    batch_size: int = 32
    refusal: list[str] = field(default_factory=list)
    score: str = "auto"
    seed: int = 0
    group_size: int | None = None


@dataclass(frozen=True)
class GenerateSettings:
    """`d2unlearn generate` and `chat`: answers of a guarded model."""

    model: str
    prompt: str | None = None
    input: str | None = None
    output: str | None = None
    max_new_tokens: int = 128
    raw: bool = False
    show_energy: bool = False
    sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    batch_size: int = 16
    seed: int = 0
    dtype: str = "auto"


@dataclass(frozen=True)
class EvaluateSettings:
    """`d2unlearn evaluate`: knowledge, energy and refusals of a model on forget and retained rows."""

    model: str
    forget: str
    retain: str
    output: str
    also_forget: dict[str, str] = field(default_factory=dict)
    also_retain: dict[str, str] = field(default_factory=dict)
    label: str | None = None
    max_new_tokens: int = 128
    batch_size: int = 32
    limit: int | None = None
    seed: int = 0
    dtype: str = "auto"
    group_size: int | None = None


@dataclass(frozen=True)
class QuickstartSettings:
    """`d2unlearn quickstart`: the whole way on the embedded world of made-up people."""

    output: str = "runs/quickstart"
    size: str = "default"
    seed: int = 0


def load_settings(kind: type[Settings], file: str | Path | None, overrides: Mapping[str, Any]) -> Settings:
    """Settings from a YAML file with the command line's values over it (None: not given).

    Raises `ConfigError` with every mistake: unknown keys, wrong types, what is missing, a file that is no YAML mapping.
    """
    values = {**_read_yaml(file), **{key: value for key, value in overrides.items() if value is not None}}
    hints = get_type_hints(kind)
    mistakes = [_unknown(key, list(hints), kind) for key in values if key not in hints]
    given: dict[str, Any] = {}
    for key in (key for key in values if key in hints):
        given[key], mistake = _coerced(key, values[key], hints[key])
        mistakes += [mistake] if mistake else []
    for each in fields(kind):  # type: ignore[arg-type]
        required = each.default is MISSING and each.default_factory is MISSING
        if required and each.name not in values:
            mistakes.append(f"{each.name} is missing (--{each.name.replace('_', '-')}, or `{each.name}:` in the file)")
    if mistakes:
        raise ConfigError(mistakes)
    return kind(**given)


def _read_yaml(file: str | Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    path = Path(file)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError([f"{path} does not exist"]) from None
    except yaml.YAMLError as error:
        raise ConfigError([f"{path} is not valid YAML: {' '.join(str(error).split())}"]) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError([f"{path} should hold `key: value` lines, not a {type(values).__name__}"])
    return {str(key).replace("-", "_"): value for key, value in values.items()}


def _unknown(key: str, known: list[str], kind: type) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"
    return f"unknown key {key}{hint}"


def _coerced(key: str, value: Any, hint: Any) -> tuple[Any, str | None]:
    """The value as the field's type, and what is wrong with it (None: nothing)."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for option in options:
        if option is type(None):
            if value is None:
                return None, None
            continue
        found = _as(option, value)
        if found is not None:
            return found, None
    names = " or ".join("nothing" if o is type(None) else getattr(get_origin(o) or o, "__name__", str(o)) for o in options)
    return None, f"{key} should be {names}, not {value!r}"


def _as(kind: Any, value: Any) -> Any:
    """`value` as `kind`, or None when it is not one. Numbers may be written as text (the command line does)."""
    origin = get_origin(kind) or kind
    if origin is bool:
        return value if isinstance(value, bool) else None
    if origin in (int, float):
        if isinstance(value, bool):
            return None
        try:
            number = float(value)
        except (TypeError, ValueError):
            return None
        return (int(number) if number == int(number) else None) if origin is int else number
    return value if isinstance(value, origin) else None
