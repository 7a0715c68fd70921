"""A decoder's layers and the norm before its head, found in any Hugging Face causal model by how it is built, not by name."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from d2unlearn.errors import ModelError
from d2unlearn.observation import causal_model


@dataclass(frozen=True)
class Layers:
    """The modules whose states can be read through the LM head: the decoder's layers, then the norm before the head."""

    blocks: tuple[nn.Module, ...]
    norm: nn.Module


def layers_of(model: nn.Module) -> Layers:
    """The decoder's layers and its last norm: the one that stands beside the layers, after everything else.

    Raises `ModelError` for a model that is built in another way.
    """
    causal = causal_model(model)
    names = layer_names(model)
    beside = causal.get_submodule(names[0].rpartition(".")[0].rpartition(".")[0]).children()
    norms = [part for part in beside if "norm" in type(part).__name__.lower()]
    if not norms:
        raise ModelError(f"{type(causal).__name__} has no norm beside its layers")
    return Layers(tuple(causal.get_submodule(name) for name in names), norms[-1])


def layer_names(model: nn.Module) -> list[str]:
    """The decoder's layers, in order, named as in `causal_model(model).named_modules()`.

    They are the members of the longest list of modules that stands in no other list (a layer's experts do). Raises `ModelError`
    where there is none.
    """
    causal = causal_model(model)
    lists = {name: len(part) for name, part in causal.named_modules() if isinstance(part, nn.ModuleList) and len(part)}
    outer = {name: n for name, n in lists.items() if not any(name.startswith(f"{other}.") for other in lists)}
    if not outer:
        raise ModelError(f"{type(causal).__name__} has no list of layers")
    longest = max(outer, key=lambda name: outer[name])
    return [f"{longest}.{index}" for index in range(outer[longest])]
