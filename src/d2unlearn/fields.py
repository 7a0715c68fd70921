"""What a field says beside its type, as `Annotated` markers, and values that are held against all of it."""

from __future__ import annotations

import difflib
import math
import types
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

from d2unlearn.runtime import is_text

Marker = TypeVar("Marker")


class Limit(NamedTuple):
    """What a value of the right type must be besides, in words and as a test. NaN passes none of the tests.

    names: all values that pass, where they are few words.
    """

    said: str
    holds: Callable[[Any], bool]
    names: tuple[str, ...] = ()

    @property
    def or_auto(self) -> Limit:
        """The same, with the word auto let through."""
        return Limit(f"{self.said} or auto", lambda value: value == "auto" if isinstance(value, str) else self.holds(value))


class Flag(str):
    """An option's names, where they are not the field's."""


class Metavar(str):
    """What an option's value is, as `--help` shows it."""


class Default(str):
    """What leaving a field out means, where its default value does not say it."""


class Group(str):
    """The heading in `--help` that an option stands under."""


class NamesModel:
    """Marks a field that names a model, so that a GGUF file may stand there: a command puts its folder in the place."""


class Incidental:
    """Marks a field that does not count for a result's identity: where things stand, or how fast they are done."""


class Later:
    """Marks a field that came after results were made: at its default it does not count for identity, so they stay done."""


class Commas:
    """Marks a mapping whose pairs may be given at once, with commas between them."""


COMMAS = Commas()


def one_of(*names: str) -> Limit:
    """One of some words."""
    return Limit(f"{', '.join(names[:-1])} or {names[-1]}", lambda value: value in names, names)


INCIDENTAL = Incidental()
LATER = Later()
MODEL = NamesModel()
COUNT = Limit("at least 1", lambda value: value >= 1)
ZERO_OR_MORE = Limit("0 or more", lambda value: 0 <= value < math.inf)
ABOVE_ZERO = Limit("a positive number", lambda value: 0 < value < math.inf)
PROPER_SHARE = Limit("above 0 and below 1", lambda value: 0 < value < 1)
SHARE = Limit("between 0 and 1", lambda value: 0 <= value <= 1)
AT_LEAST_TWO = Limit("at least 2", lambda value: value >= 2)
RANK = Limit("between 1 and 4096", lambda value: 1 <= value <= 4096)
PORT = Limit("between 0 and 65535", lambda value: 0 <= value <= 65535)
SEED = Limit("between 0 and 4294967295", lambda value: 0 <= value < 2**32)


def bare(hint: Any) -> Any:
    """A type hint without its markers."""
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def marker_of(hint: Any, kind: type[Marker]) -> Marker | None:
    """The last marker of exactly this kind in a type hint; None where there is none."""
    markers = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    return next((marker for marker in reversed(markers) if type(marker) is kind), None)


def flag_of(name: str, hint: Any) -> str:
    """How a field is given on the command line: `--batch-size`, or as its marker says."""
    return marker_of(hint, Flag) or f"--{name.replace('_', '-')}"


def typed(values: Mapping[str, Any], hints: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The values as the types that `hints` names, and what is wrong with them: unknown keys, types, values out of range."""
    mistakes = [_unknown(key, list(hints)) for key in values if key not in hints]
    given: dict[str, Any] = {}
    for key in (key for key in values if key in hints):
        given[key], mistake = _coerced(key, values[key], hints[key])
        mistakes += [mistake] if mistake else []
    return given, mistakes


def _unknown(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"
    return f"unknown key {key}{hint}"


def _coerced(key: str, value: Any, hint: Any) -> tuple[Any, str | None]:
    """The value as the field's type, and what is wrong with it (None: nothing)."""
    kind = bare(hint)
    options = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    if value is None and type(None) in options:
        return None, None
    converted = next((cast for cast in (_as(o, value) for o in options if o is not type(None)) if cast is not None), None)
    if converted is None:
        names = " or ".join("nothing" if o is type(None) else _name(o) for o in options)
        return None, f"{key} should be {names}, not {value!r}"
    limit = marker_of(hint, Limit)
    if limit is not None and not limit.holds(converted):
        return None, f"{key} should be {limit.said}, not {value}"
    return converted, None


def _as(kind: Any, value: Any) -> Any:
    """`value` as `kind`, or None when it is not one. Numbers may be written as text (the command line does)."""
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if origin is Any:
        return value
    if origin is Literal:
        return value if value in inner else None
    if origin is list and isinstance(value, list):
        items = [_as(inner[0], item) for item in value]
        return None if None in items else items
    if origin is dict and isinstance(value, dict):
        entries = {str(name): _as(inner[1], item) for name, item in value.items()}
        return None if None in entries.values() else entries
    if origin in (int, float):
        return _as_number(origin, value)
    if isinstance(value, str) and not is_text(value):
        return None
    return value if isinstance(value, origin) else None


def _as_number(kind: type, value: Any) -> int | float | None:
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
        return (int(number) if number == int(number) else None) if kind is int else number
    except (TypeError, ValueError, OverflowError):
        return None


def _name(kind: Any) -> str:
    words = {list: "list", dict: "mapping", str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if origin is Literal:
        return " or ".join(map(str, inner))
    of = f" of {words.get(inner[-1], 'values')}" if inner and inner[-1] is not Any else ""
    return f"{words.get(origin, getattr(origin, '__name__', str(origin)))}{of}"
