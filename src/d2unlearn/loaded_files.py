"""Which files of a model's folder its loader opens, found before anything is loaded, and hashes of what they hold.

transformers opens `model.safetensors` where it is there, else the files that `model.safetensors.index.json` names; a name in
the configuration (`transformers_weights`) comes before both. Nothing else in the folder is a weight, whatever it is called.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from d2unlearn.errors import ArtifactError, ModelError
from d2unlearn.runtime import fingerprint, hash_file, read_json
from d2unlearn.schema import GATE_COPY, GATE_FILE

CONFIG_FILE = "config.json"
GENERATION_CONFIG_FILE = "generation_config.json"
ADAPTER = "adapter_config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TEMPLATES = ("chat_template*", "additional_chat_templates/*")
TOKENIZER = (
    *("tokenizer*", "vocab*", "merges*", "special_tokens_map.json", "added_tokens.json"),
    *("*.model", "*.tiktoken", "*.vocab", "bpe.codes", "tekken.json", "normalizer.json"),
)
"""Names of what tokenizers of transformers are read from."""

NOTED = frozenset({"transformers_version", "_name_or_path", GATE_COPY})
"""Entries of a configuration that change no model."""
FORM = frozenset(
    {"transformers_version", "_from_model_config", "return_dict_in_generate", "num_return_sequences", "do_sample"}
    | {"output_scores", "output_logits", "output_attentions", "output_hidden_states"}
)
"""Entries of a generation configuration that say how many answers come back, and with what beside them."""

BOUND = {
    "config": "the configuration (config.json)",
    "generation_config": "what generation is told (generation_config.json)",
    "tokenizer": "the tokenizer's files",
    "template": "the chat template's files",
}
"""What a gate is bound to beside the weights, in words."""


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The weight files that the loader opens, in order of their names; empty where it finds none.

    Raises `ModelError` where a name leads out of the folder or to what is no safetensors file: the loader would open it all the
    same, a pickle too.
    """
    named = _weights_named(folder)
    for name in named:
        inside = _is_inside(name)
        if not inside or not name.endswith(".safetensors"):
            why = "is no safetensors file" if inside else "does not lie in the folder"
            raise ModelError(f"{folder}: its weights are said to be in {name!r}, which {why}; nothing was loaded")
    return tuple(folder / name for name in named)


def _weights_named(folder: Path) -> list[str]:
    explicit = _explicit_name(folder)
    if explicit is None and (folder / WEIGHTS).is_file():
        return [WEIGHTS]
    if explicit is not None and not explicit.endswith(".index.json"):
        return [explicit]
    index = INDEX if explicit is None else explicit
    if not _is_inside(index):
        raise ModelError(f"{folder}: its weights are said to be listed in {index!r}, which does not lie in the folder")
    if not (folder / index).is_file():
        return []
    try:
        return sorted({str(name) for name in read_json(folder / index)["weight_map"].values()})
    except (ArtifactError, KeyError, AttributeError) as error:
        raise ModelError(f"{folder / index} does not say where the weights are ({error}): copy or download it again") from None


def _explicit_name(folder: Path) -> str | None:
    """The configuration's name for the weights; a configuration that cannot be read names none, and the loader says so."""
    try:
        named = read_json(folder / CONFIG_FILE).get("transformers_weights")
    except ArtifactError:
        return None
    return None if named is None else str(named)


def _is_inside(name: str) -> bool:
    return Path(name).parts == (name,) and name not in (".", "..")


def check_loadable(folder: Path) -> None:
    """Before a folder is loaded: `weight_files`, and with a gate in it `check_self_contained`. Raises `ModelError`."""
    weight_files(folder)
    if (folder / GATE_FILE).is_file():
        check_self_contained(folder)


def check_self_contained(folder: Path) -> None:
    """Raises `ModelError` where loading the folder would read what is not in it: a link that leaves it, or an adapter.

    Links of the hub's cache, from a snapshot into its own `blobs`, stay within one download and are followed.
    """
    root = folder.resolve()
    allowed = [root, *([root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [])]
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() and not any(path.resolve().is_relative_to(place) for place in allowed):
            raise ModelError(
                f"{path} is a link to {path.resolve()}, outside the folder that a gate is bound to: put the file itself there"
            )
    if (folder / ADAPTER).is_file():
        raise ModelError(
            f"{folder} holds {ADAPTER}, and a gate is bound to the weights alone, on which an adapter would be put: remove "
            "it, or merge it and calibrate then"
        )


def bound_hashes(folder: Path) -> dict[str, str]:
    """sha256 of what decides beside the weights, by the names of `BOUND`: of entries that mean something, or files' bytes."""
    templates = _matching(folder, TEMPLATES)
    tokenizer = [path for path in _matching(folder, TOKENIZER) if path not in templates]
    return {
        "config": fingerprint(_entries(folder / CONFIG_FILE, NOTED)),
        "generation_config": fingerprint(_entries(folder / GENERATION_CONFIG_FILE, FORM)),
        "tokenizer": _hash_of(folder, tokenizer),
        "template": _hash_of(folder, templates),
    }


def _entries(path: Path, without: frozenset[str]) -> Mapping[str, Any]:
    return {name: value for name, value in read_json(path).items() if name not in without} if path.is_file() else {}


def _matching(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})


def _hash_of(folder: Path, files: list[Path]) -> str:
    return fingerprint([[path.relative_to(folder).as_posix(), hash_file(path)] for path in files])
