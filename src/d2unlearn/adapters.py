"""Folders that hold a PEFT adapter and no model: what they are an adapter of, and where that is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from d2unlearn.errors import ModelError

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


class Adapter(NamedTuple):
    """An adapter's folder, and the model that it changes: a folder, or a name on the hub."""

    folder: Path
    base: str


def adapter_of(source: str | Path) -> Adapter | None:
    """The adapter in a folder; None for anything else.

    A base that is named by a path is looked for from here, then from the adapter's folder. Raises `ModelError` for a
    configuration that names none, where the adapter's weights are missing, and for a folder that holds a model, too.
    """
    folder = Path(source)
    if not (folder / ADAPTER_CONFIG).is_file():
        return None
    if any(folder.glob("model*.safetensors")):
        raise ModelError(
            f"{folder} holds a model and {ADAPTER_CONFIG}, and nothing says which is meant: keep one of them there"
        )
    try:
        named = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError, UnicodeDecodeError):
        named = None
    if not isinstance(named, str) or not named.strip():
        raise ModelError(f"{folder / ADAPTER_CONFIG} names no base_model_name_or_path: nothing says which model it changes")
    places = [path for path in (Path(named), folder / named) if path.is_dir() and not path.samefile(folder)]
    if not (folder / ADAPTER_WEIGHTS).is_file() or not (folder / ADAPTER_WEIGHTS).stat().st_size:
        raise ModelError(f"{folder} holds a PEFT adapter of {named}, but {ADAPTER_WEIGHTS} is missing or empty: save it again")
    return Adapter(folder, str(places[0]) if places else named)
