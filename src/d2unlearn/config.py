"""Run configurations: one frozen dataclass a verb, filled from one YAML file and from the command line over it.

All mistakes are reported together; a key that no field has is refused, with the nearest one named.
"""

from __future__ import annotations

import difflib
import math
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from d2unlearn.errors import ConfigError
from d2unlearn.runtime import is_text

Settings = TypeVar("Settings")


class Incidental:
    """Marks a field that does not count for a result's identity: where things stand, or how fast they are done."""


INCIDENTAL = Incidental()


@dataclass(frozen=True)
class UnlearnSettings:
    """`d2unlearn unlearn`: what to remove from which model, and how."""

    model: Annotated[str, INCIDENTAL]
    forget: Annotated[str, INCIDENTAL]
    retain: Annotated[str, INCIDENTAL]
    output: Annotated[str, INCIDENTAL]
    alternate: Annotated[str | None, INCIDENTAL] = None
    method: str = "eua"
    method_parameters: dict[str, Any] = field(default_factory=dict)
    learning_rate: float | str = "auto"
    epochs: float | str = "auto"
    batch_size: int = 8
    accumulation: int | str = "auto"
    max_length: int = 512
    seed: int = 0
    lora: bool = False
    lora_rank: int = 16
    dtype: str = "auto"
    bf16: bool = False
    gradient_checkpointing: bool = False
    exclude_padded_rows: bool = False
    keep: str = "best"
    report_to: Annotated[str, INCIDENTAL] = "none"
    group_size: int | None = None


@dataclass(frozen=True)
class CalibrateSettings:
    """`d2unlearn calibrate`: the gate of an artifact, from retained prompts that training never saw.

    seed None: the one that the artifact was made with.
    """

    model: Annotated[str, INCIDENTAL]
    retain: Annotated[str, INCIDENTAL]
    forget: Annotated[str | None, INCIDENTAL] = None
    max_false_refusal: float = 0.01
    confidence: float | None = None
    max_new_tokens: int = 64
    batch_size: Annotated[int, INCIDENTAL] = 32
    refusal: list[str] = field(default_factory=list)
    score: str = "auto"
    seed: int | None = None
    group_size: int | None = None


@dataclass(frozen=True)
class GenerateSettings:
    """`d2unlearn generate` and `chat`: answers of a guarded model."""

    model: Annotated[str, INCIDENTAL]
    prompt: Annotated[str | None, INCIDENTAL] = None
    input: Annotated[str | None, INCIDENTAL] = None
    output: Annotated[str | None, INCIDENTAL] = None
    max_new_tokens: int | None = None
    raw: bool = False
    show_energy: Annotated[bool, INCIDENTAL] = False
    sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    batch_size: Annotated[int, INCIDENTAL] = 16
    seed: int = 0
    dtype: str = "auto"


@dataclass(frozen=True)
class ServeSettings:
    """`d2unlearn serve`: the guarded model behind OpenAI's HTTP interface, and what a client may ask of it.

    name None: the folder's. max_new_tokens None: as many as the gate was calibrated with (raw: 128). max_prompt_tokens None:
    what the model's context leaves, at most 4096. api_keys: a file with one key a line. queue: requests that may wait;
    connections: open at once; timeout, stop_timeout: seconds of a request, and of those running when the server is stopped.
    """

    model: str
    host: str = "127.0.0.1"
    port: int = 8000
    name: str | None = None
    raw: bool = False
    dtype: str = "auto"
    max_new_tokens: int | None = None
    max_prompt_tokens: int | None = None
    max_body_bytes: int = 1_000_000
    batch_size: int = 16
    queue: int = 256
    connections: int = 2048
    timeout: float = 120.0
    stop_timeout: float = 20.0
    hold_back: int = 0
    api_keys: str | None = None
    hide_energy: bool = False
    log_prompts: bool = False


@dataclass(frozen=True)
class PlaySettings:
    """`d2unlearn play`: a page that shows the original's, the unlearned and the guarded answer side by side.

    original None: the model that the artifact was made from. samples: files of questions to choose from, by what they are
    called on the page; none: the rows that `unlearn` was given.
    """

    model: str
    original: str | None = None
    port: int = 7860
    samples: dict[str, str] = field(default_factory=dict)
    max_new_tokens: int | None = None
    dtype: str = "auto"


@dataclass(frozen=True)
class EvaluateSettings:
    """`d2unlearn evaluate`: knowledge, energy and refusals of a model on forget and retained rows."""

    model: Annotated[str, INCIDENTAL]
    forget: Annotated[str, INCIDENTAL]
    retain: Annotated[str, INCIDENTAL]
    output: Annotated[str, INCIDENTAL]
    also_forget: Annotated[dict[str, str], INCIDENTAL] = field(default_factory=dict)
    also_retain: Annotated[dict[str, str], INCIDENTAL] = field(default_factory=dict)
    label: str | None = None
    max_new_tokens: int = 128
    batch_size: int = 32
    limit: int | None = None
    seed: int = 0
    dtype: str = "auto"
    group_size: int | None = None


@dataclass(frozen=True)
class BenchmarkSettings:
    """`d2unlearn evaluate --benchmark`: one of the field's benchmarks, counted as the convention says.

    `data`: a folder with the benchmark's files, None for the hub. `retain_logs`: the EVAL file of a model that never saw the
    forget set. `reference_model`: for the reference attack. `parts`: further sets (MUSE: scal, sust). `tasks`: of lm-eval.
    `system_prompt` and `date_string` begin every conversation.
    """

    model: Annotated[str, INCIDENTAL]
    benchmark: str
    output: Annotated[str, INCIDENTAL]
    data: Annotated[str | None, INCIDENTAL] = None
    convention: str = "d2unlearn"
    retain_logs: Annotated[str | None, INCIDENTAL] = None
    forget_split: str = "forget10"
    holdout_split: str | None = None
    corpus: str = "news"
    parts: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    question_key: str = "question"
    gradient_norm: bool = True
    reference_model: Annotated[str | None, INCIDENTAL] = None
    system_prompt: str | None = None
    date_string: str | None = None
    label: str | None = None
    batch_size: int = 32
    limit: int | None = None
    seed: int = 0
    dtype: str = "auto"


@dataclass(frozen=True)
class AnalyzeSettings:
    """`d2unlearn analyze`: how well energy and every other index tell forgotten from retained requests, and at what cost.

    original, oracle: further models to read beside the one on trial. calibration: retained rows to fit and set thresholds on;
    None: half of `retain`. disturbed: rows of the first forget and the first retained set that are asked again under each
    disturbance.
    """

    model: Annotated[str, INCIDENTAL]
    forget: Annotated[str, INCIDENTAL]
    retain: Annotated[str, INCIDENTAL]
    output: Annotated[str, INCIDENTAL]
    also_forget: Annotated[dict[str, str], INCIDENTAL] = field(default_factory=dict)
    also_retain: Annotated[dict[str, str], INCIDENTAL] = field(default_factory=dict)
    original: Annotated[str | None, INCIDENTAL] = None
    oracle: Annotated[str | None, INCIDENTAL] = None
    calibration: Annotated[str | None, INCIDENTAL] = None
    label: str | None = None
    max_new_tokens: int = 64
    batch_size: int = 32
    disturbed: int = 200
    limit: int | None = None
    seed: int = 0
    dtype: str = "auto"
    group_size: int | None = None


@dataclass(frozen=True)
class CompareSettings:
    """`d2unlearn compare`: methods and guards, tuned alike on validation questions and judged once on test questions.

    splits: by name, what is forgotten and what kept (`comparison.plan.Split`). results: a JSON file a run; None: in `output`.
    methods: none named are all. search: by contestant, a parameter as a value or as a range to search, [low, high]. left_out:
    contestants that the table names with a reason in place of numbers. backend: process, ray, or here (in this process).
    launcher: what starts a run's command in place of python, e.g. `accelerate launch --num_processes 2`. run: only the run of
    this key; plan: say what there is to do, and do nothing.
    """

    model: str
    splits: dict[str, dict[str, Any]]
    output: str
    results: str | None = None
    methods: list[str] = field(default_factory=list)
    guards: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    trials: int = 6
    search: dict[str, dict[str, Any]] = field(default_factory=dict)
    learning_rate: float | str = "auto"
    epochs: float | str = 5.0
    batch_size: int = 8
    accumulation: int | str = "auto"
    max_length: int = 512
    lora: bool = False
    lora_rank: int = 16
    dtype: str = "auto"
    bf16: bool = False
    gradient_checkpointing: bool = False
    max_false_refusal: float = 0.01
    test_rows: int = 400
    max_new_tokens: int = 96
    eval_batch_size: int = 32
    attack_learning_rate: float = 5e-4
    keep_artifacts: bool = False
    backend: str = "process"
    jobs: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    launcher: str | None = None
    run: str | None = None
    plan: bool = False


@dataclass(frozen=True)
class QuickstartSettings:
    """`d2unlearn quickstart`: the whole way on the embedded world of made-up people."""

    output: str = "runs/quickstart"
    size: str = "default"
    seed: int = 0


@dataclass(frozen=True)
class ReportSettings:
    """`d2unlearn report`: a page from two evaluations."""

    before: str
    after: str
    artifact: str | None = None
    output: str = "report.html"


@dataclass(frozen=True)
class CheckSettings:
    """`d2unlearn data check`: what the rows of a data set look like."""

    forget: str
    retain: str | None = None
    model: str | None = None
    group_size: int | None = None


class Limit(NamedTuple):
    """What a value of the right type must be besides, in words and as a test. NaN passes none of the tests."""

    said: str
    holds: Callable[[Any], bool]


def one_of(*names: str) -> Limit:
    """One of some words."""
    return Limit(f"{', '.join(names[:-1])} or {names[-1]}", lambda value: value in names)


COUNT = Limit("at least 1", lambda value: value >= 1)
POSITIVE = Limit("a positive number", lambda value: 0 < value < math.inf)
SHARE = Limit("above 0 and below 1", lambda value: 0 < value < 1)
LIMITS = {
    "learning_rate": Limit("a positive number or auto", lambda v: v == "auto" if isinstance(v, str) else POSITIVE.holds(v)),
    "epochs": Limit("a positive number or auto", lambda v: v == "auto" if isinstance(v, str) else POSITIVE.holds(v)),
    "batch_size": COUNT,
    "accumulation": Limit("at least 1 or auto", lambda v: v == "auto" if isinstance(v, str) else COUNT.holds(v)),
    "max_length": Limit("at least 2", lambda value: value >= 2),
    "lora_rank": COUNT,
    "trials": COUNT,
    "test_rows": COUNT,
    "eval_batch_size": COUNT,
    "attack_learning_rate": POSITIVE,
    "backend": one_of("process", "ray", "here"),
    "jobs": COUNT,
    "cpus": POSITIVE,
    "gpus": Limit("0 or more", lambda value: 0 <= value < math.inf),
    "keep": one_of("best", "last"),
    "group_size": COUNT,
    "max_new_tokens": COUNT,
    "disturbed": COUNT,
    "limit": COUNT,
    "max_false_refusal": SHARE,
    "confidence": SHARE,
    "temperature": POSITIVE,
    "top_p": Limit("above 0 and at most 1", lambda value: 0 < value <= 1),
    "benchmark": one_of("tofu", "muse", "wmdp"),
    "convention": one_of("d2unlearn", "open-unlearning"),
    "corpus": one_of("news", "books"),
    "question_key": one_of("question", "paraphrased_question"),
    "seed": Limit("between 0 and 4294967295", lambda value: 0 <= value < 2**32),
    "port": Limit("between 0 and 65535", lambda value: 0 <= value <= 65535),
    "max_prompt_tokens": COUNT,
    "max_body_bytes": COUNT,
    "queue": COUNT,
    "connections": COUNT,
    "timeout": POSITIVE,
    "stop_timeout": POSITIVE,
    "hold_back": Limit("0 or more", lambda value: value >= 0),
}
"""The same for a key of this name in all settings."""


def load_settings(kind: type[Settings], file: str | Path | None, overrides: Mapping[str, Any]) -> Settings:
    """Settings from a YAML file with the command line's values over it (None: not given).

    A mapping given on the command line (`--set`, `--also-forget`) replaces the file's entries of the same name and keeps the
    others. Raises `ConfigError` with every mistake: unknown keys, wrong types, values out of range, what is missing, a file
    that is no YAML mapping.
    """
    values = _read_yaml(file)
    for key, value in overrides.items():
        if value is not None:
            below = values.get(key)
            values[key] = {**below, **value} if isinstance(value, dict) and isinstance(below, dict) else value
    given, mistakes = typed(values, get_type_hints(kind))
    for each in fields(kind):  # type: ignore[arg-type]
        required = each.default is MISSING and each.default_factory is MISSING
        if required and each.name not in values:
            mistakes.append(f"{each.name} is missing (--{each.name.replace('_', '-')}, or `{each.name}:` in the file)")
    if mistakes:
        raise ConfigError(mistakes)
    return kind(**given)


def holds(file: str | Path | None, key: str) -> bool:
    """Whether a settings file has a key. Raises `ConfigError` as `load_settings` does."""
    return key in _read_yaml(file)


def identity(settings: Any) -> dict[str, Any]:
    """What a result depends on: the settings without the fields marked `INCIDENTAL`."""
    hints = get_type_hints(type(settings), include_extras=True)
    return {name: value for name, value in asdict(settings).items() if INCIDENTAL not in get_args(hints[name])}


def typed(values: Mapping[str, Any], hints: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The values as the types that `hints` names, and what is wrong with them: unknown keys, types, values out of range."""
    mistakes = [_unknown(key, list(hints)) for key in values if key not in hints]
    given: dict[str, Any] = {}
    for key in (key for key in values if key in hints):
        given[key], mistake = _coerced(key, values[key], hints[key])
        mistakes += [mistake] if mistake else []
    return given, mistakes


def _read_yaml(file: str | Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    path = Path(file)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError([f"{path} does not exist"]) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise ConfigError([f"{path} cannot be read: {reason}"]) from None
    except yaml.YAMLError as error:
        raise ConfigError([f"{path} is not valid YAML: {' '.join(str(error).split())}"]) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError([f"{path} should hold `key: value` lines, not a {type(values).__name__}"])
    return {str(key).replace("-", "_"): value for key, value in values.items()}


def _unknown(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"
    return f"unknown key {key}{hint}"


def _coerced(key: str, value: Any, hint: Any) -> tuple[Any, str | None]:
    """The value as the field's type, and what is wrong with it (None: nothing)."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None, None
    found = next((each for each in (_as(o, value) for o in options if o is not type(None)) if each is not None), None)
    if found is None:
        names = " or ".join("nothing" if o is type(None) else _name(o) for o in options)
        return None, f"{key} should be {names}, not {value!r}"
    limit = LIMITS.get(key)
    if limit is not None and not limit.holds(found):
        return None, f"{key} should be {limit.said}, not {value}"
    return found, None


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
