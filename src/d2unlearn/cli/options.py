"""How a verb gets its settings: an option for each field, the file that `--config` names, and both read into one object."""

from __future__ import annotations

import inspect
import io
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import MISSING, Field, dataclass, fields
from functools import partial, wraps
from typing import Any, get_args, get_origin, get_type_hints

import typer
import yaml
from typer.core import TyperCommand, TyperGroup, TyperOption

from d2unlearn.commands import with_model_folders
from d2unlearn.config import load_settings, read_yaml
from d2unlearn.errors import ConfigError, out_of_memory
from d2unlearn.fields import Commas, Default, Group, Limit, Metavar, bare, flag_of, marker_of
from d2unlearn.yaml_text import read_values

Verb = Callable[[Any], None]
CONFIG = typer.Option(None, "--config", metavar="FILE", help="YAML file with any of these options; the command line wins.")
MEMORY: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("batch_size", lambda value: value > 1, "a smaller --batch-size"),
    ("eval_batch_size", lambda value: value > 1, "a smaller --eval-batch-size"),
    ("max_length", lambda value: value > 1, "a smaller --max-length"),
    ("gradient_checkpointing", lambda value: not value, "--gradient-checkpointing"),
    ("lora", lambda value: not value, "--lora"),
    ("max_new_tokens", lambda value: value is None or value > 1, "a smaller --max-new-tokens"),
    ("dtype", lambda value: value not in ("bfloat16", "float16"), "--dtype bfloat16"),
)
"""What saves memory, the best first: a setting, whether its value can still be lowered, and what to give instead."""
_KNOBS = 3
_CROPPED = "…"
_INDENT = 2


@dataclass
class Told:
    """What was said of the program as a whole, wherever on the command line it stood. debug: tracebacks are wanted."""

    debug: bool = False


def _note_debug(ctx: typer.Context, wanted: bool) -> None:
    told = ctx.find_object(Told)
    if wanted and told is not None:
        told.debug = True


DEBUG = typer.Option(
    False, "--debug", help="Where it ends with an error, print the traceback too.", callback=_note_debug, show_default=False
)
"""The option of every command, and of the program before its command."""


class _HelpsAnyWidth:
    """Help of which nothing is cut off: where there is no room for columns, each name stands above what is said of it."""

    rich_markup_mode: Any
    get_params: Callable[[Any], list[Any]]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """As the class above does, unless that would crop something."""
        with redirect_stdout(io.StringIO()) as drawn:
            super().format_help(ctx, formatter)  # type: ignore[misc]
        if _CROPPED in drawn.getvalue():
            self.rich_markup_mode = None
            formatter.width = shutil.get_terminal_size().columns
            formatter.write_dl = partial(formatter.write_dl, col_max=_INDENT)
        super().format_help(ctx, formatter)  # type: ignore[misc]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """All options under the headings that they have among columns, too."""
        headed: dict[str, list[tuple[str, str]]] = {}
        for option in self.get_params(ctx):
            record = option.get_help_record(ctx)
            if record is not None:
                headed.setdefault(getattr(option, "rich_help_panel", None) or "Options", []).append(record)
        for heading, records in headed.items():
            with formatter.section(heading):
                formatter.write_dl(records)


class VerbGroup(_HelpsAnyWidth, TyperGroup):
    """A command that has others below it."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """The options, then each command with its first sentence in full."""
        super().format_options(ctx, formatter)
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.get_short_help_str(sys.maxsize)) for name, verb in self.commands.items()])


class OnceEach(_HelpsAnyWidth, TyperCommand):
    """A command that refuses an option given twice, where only one of its values could be used."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As the class above does. Raises `ConfigError`."""
        if not ctx.resilient_parsing:
            _, _, order = self.make_parser(ctx).parse_args(args=list(args))
            single = [option for option in order if isinstance(option, TyperOption) and not option.multiple]
            twice = dict.fromkeys("/".join(o.opts[:1] + o.secondary_opts) for o in single if single.count(o) > 1)
            if twice:
                raise ConfigError([f"{flag} is given twice, and takes one value" for flag in twice])
        return super().parse_args(ctx, args)


def takes(
    settings: type[Any],
    *,
    instead: Mapping[str, type[Any]] | None = None,
    only: Collection[str] | None = None,
    quiet: bool = True,
) -> Callable[[Verb], Callable[..., None]]:
    """Makes a verb, a function of its settings, a command with an option for each of their fields.

    instead: other settings, read in place of these where a value for the key beside them is given; only: the fields that are
    options, where a file may hold more; quiet: transformers is imported and kept from writing.
    """
    others = instead or {}
    options: dict[str, tuple[Field[Any], Any]] = {}
    kinds = (settings, *others.values())
    required = set.intersection(*({f.name for f in fields(kind) if _has_no_default(f)} for kind in kinds))
    for kind in kinds:
        hints = get_type_hints(kind, include_extras=True)
        options |= {f.name: (f, hints[f.name]) for f in fields(kind) if f.name in (only or hints) and f.name not in options}

    def command_of(verb: Verb) -> Callable[..., None]:
        @wraps(verb)
        def command(config: str | None, debug: bool, **values: Any) -> None:
            given = {name: _read(name, value, options[name][1]) for name, value in values.items() if value is not None}
            chosen = next((other for key, other in others.items() if key in {*given, *read_yaml(config)}), settings)
            loaded = load_settings(chosen, config, given)
            if quiet:
                from d2unlearn.models import quiet_transformers

                quiet_transformers()
            with _memory_remedy(loaded):
                verb(with_model_folders(loaded))

        parameters = [
            _parameter(name, _kind(hint), _option(setting, hint, required=name in required))
            for name, (setting, hint) in options.items()
        ]
        parameters += [_parameter("config", str, CONFIG), _parameter("debug", bool, DEBUG)]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return command

    return command_of


def shown_default(setting: Field[Any], hint: Any) -> str:
    """What leaving a setting out means, as its help says it: the field's default, or its marker; empty for none or no."""
    value = setting.default if setting.default_factory is MISSING else setting.default_factory()
    words = marker_of(hint, Default)
    if words is not None or value is None or value is MISSING or value is False:
        return words or ""
    if isinstance(value, list | dict):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


@contextmanager
def _memory_remedy(settings: Any) -> Iterator[None]:
    """Around a verb: where memory does not suffice, a `ConfigError` names those of its settings that save some."""
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        given = {name: getattr(settings, name, None) for name, _, _ in MEMORY if hasattr(settings, name)}
        found = [said for name, lowers, said in MEMORY if name in given and lowers(given[name])]
        raise ConfigError([f"out of memory: choose {', or '.join(found[:_KNOBS]) or 'a smaller model'}"]) from error


def _has_no_default(setting: Field[Any]) -> bool:
    return setting.default is MISSING and setting.default_factory is MISSING


def _option(setting: Field[Any], hint: Any, *, required: bool) -> Any:
    """required: its help says so; the settings themselves refuse to do without, since a file may hold it."""
    default = shown_default(setting, hint)
    repeatable = get_origin(bare(hint)) is dict or get_origin(_kind(hint)) is list
    help_text = f"{marker_of(hint, str)}{' Repeatable.' if repeatable else ''}{'  [required]' if required else ''}"
    return typer.Option(
        None,
        *flag_of(setting.name, hint).split(),
        help=f"{help_text}  [default: {default}]" if default else help_text,
        metavar=marker_of(hint, Metavar),
        rich_help_panel=marker_of(hint, Group),
        show_default=False,
        autocompletion=_completing(hint),
    )


def _completing(hint: Any) -> Callable[[str], list[str]] | None:
    """What a shell offers for an option's value as far as it is typed; None: files, as for all other words."""
    limit = marker_of(hint, Limit)
    names = () if limit is None else limit.names
    return (lambda incomplete: [name for name in names if name.startswith(incomplete)]) if names else None


def _parameter(name: str, kind: Any, option: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=kind)


def _kind(hint: Any) -> Any:
    """The type that the terminal's text is read as: a mapping as repeated pairs, what may also be a word as text."""
    kind = bare(hint)
    if get_origin(kind) is dict:
        return list[str]
    options = [option for option in get_args(kind) if option is not type(None)]
    if get_origin(kind) is list or list[str] in options:
        return list[str] if list[str] in options else kind
    return kind if not options else str if str in options else options[0]


def _read(name: str, value: Any, hint: Any) -> Any:
    """The value of an option as a settings file would hold it: pairs as a mapping, with numbers and truth values as such."""
    kind, flag = bare(hint), flag_of(name, hint).split()[0]
    if get_origin(kind) is not dict:
        return value[0] if list[str] in get_args(kind) and len(value) == 1 else value
    if marker_of(hint, Commas) is not None:
        value = [pair for text in value for pair in text.split(",")]
    wrong = [text for text in value if "=" not in text]
    if wrong:
        raise ConfigError([f"{flag} takes NAME=VALUE, not {text!r}" for text in wrong])
    pairs = dict(text.split("=", 1) for text in value)
    if len(pairs) < len(value):
        names = [text.split("=", 1)[0] for text in value]
        raise ConfigError([f"{flag} {name} is given twice" for name in pairs if names.count(name) > 1])
    if get_args(kind)[1] is str:
        return pairs
    try:
        return {key: read_values(text) for key, text in pairs.items()}
    except yaml.YAMLError as error:
        raise ConfigError([f"{flag} takes NAME=VALUE with a plain value: {' '.join(str(error).split())}"]) from None
