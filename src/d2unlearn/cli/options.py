"""What several verbs take: the settings file, KEY=VALUE pairs, and an optional part of the installation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
import yaml

from d2unlearn.errors import ConfigError

CONFIG = typer.Option(None, "--config", metavar="FILE", help="YAML file with any of these options; the command line wins.")
SEED = typer.Option(None, help="Seed of everything that is drawn.  [default: 0]")
DTYPE = typer.Option(None, help="float32, bfloat16, float16, or auto: as the weights were saved.  [default: auto]")
GROUP_SIZE = typer.Option(
    None, metavar="N", help="Rows come in blocks of N that belong together (TOFU: 20), where no column `group` says so."
)


def pairs(given: list[str] | None, option: str) -> dict[str, str] | None:
    """`["a=1", "b=x"]` as a mapping; None for nothing given. Raises `ConfigError` for a value without `=`."""
    wrong = [text for text in given or [] if "=" not in text]
    if wrong:
        raise ConfigError([f"{option} takes NAME=VALUE, not {text!r}" for text in wrong])
    return dict(text.split("=", 1) for text in given) if given else None


def typed_pairs(given: list[str] | None, option: str) -> dict[str, Any] | None:
    """As `pairs`, with numbers and truth values read as such."""
    found = pairs(given, option)
    if found is None:
        return None
    try:
        return {key: yaml.safe_load(value) for key, value in found.items()}
    except yaml.YAMLError as error:
        raise ConfigError([f"{option} takes NAME=VALUE with a plain value: {' '.join(str(error).split())}"]) from None


@contextmanager
def needs_extra(name: str) -> Iterator[None]:
    """Around the import of what only `pip install d2unlearn[NAME]` brings. Raises `ConfigError` where it is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if str(error.name).startswith("d2unlearn"):
            raise
        missing = f"{error.name} is not installed; this command needs it: pip install 'd2unlearn[{name}]'"
        raise ConfigError([missing]) from None
