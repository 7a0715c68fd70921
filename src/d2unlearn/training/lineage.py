"""What an artifact that is unlearned on further has forgotten before."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from d2unlearn.artifact import read_manifest
from d2unlearn.data.records import source_names
from d2unlearn.models import weights_hash

_SHOWN = 12


def parent_of(model: str) -> dict[str, Any] | None:
    """The artifact that training starts from, for the new one's manifest: its key, its weights' hash, and every set that it has
    forgotten, the earliest first (where it came from, rows, hash); None for a model that `unlearn` did not make.
    """
    manifest = (read_manifest(Path(model)) if Path(model).is_dir() else None) or {}
    if manifest.get("command") != "unlearn":
        return None
    earlier = (manifest.get("parent") or {}).get("forgotten", [])
    own = {name: manifest["data"]["forget"].get(name) for name in ("source", "rows", "sha256")}
    return {"model": model, "key": manifest["key"], "weights_hash": weights_hash(model), "forgotten": [*earlier, own]}


def forgotten_before(parent: Mapping[str, Any]) -> str:
    """A line for a person: which sets those are, and that a gate has to be told of them."""
    sets = ", ".join(
        f"{source_names(each['source'])} ({each['rows']} rows, sha256 {str(each['sha256'])[:_SHOWN]})"
        for each in parent["forgotten"]
    )
    return (
        f"{parent['model']} has forgotten before: {sets}. The new artifact's gate covers these only if `calibrate` is given "
        "them, too (--forget, several times)"
    )


def earlier_sources(parent: Mapping[str, Any] | None) -> list[str]:
    """The files of those sets."""
    named = [each["source"] for each in (parent or {}).get("forgotten", [])]
    return [source for each in named for source in ([each] if isinstance(each, str) else each)]
