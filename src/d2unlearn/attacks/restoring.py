"""Where in the weights it hides: put a part of the original's weights back, or go a part of the way back, and ask.

What is put back knows something by itself, so that a model that never knew is asked with the same part of the original in it.
Source: Hong et al. 2024 (2410.06606) put parts back; Ilharco et al. 2022 (2212.04089) for going a part of the way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from d2unlearn.attacks.reading import AskedRows, NotShownError, Reading
from d2unlearn.attacks.scoring import probabilities
from d2unlearn.errors import ConfigError, ModelError
from d2unlearn.layers import layer_names, layers_of
from d2unlearn.observation import causal_model

ATTENTION, MLP, OUTSIDE, FINAL_NORM = "attention", "MLP", "embeddings and head", "final norm"
_KINDS = {ATTENTION: re.compile(r"attn|attention"), MLP: re.compile(r"mlp|ffn|ff_|fc\d|feed_?forward|moe|experts")}
"""What a layer's modules are called; norms, which are named after what they stand beside, belong to neither."""
_NORM = re.compile(r"norm|ln(_|\d|$)")


@dataclass(frozen=True)
class Restoring:
    """The budget. shares: of the way from the model to the original (0: the model, 1: the original), each one setting.

    layers: restored one by one, at most so many, spread evenly over the depth; None: all.
    """

    shares: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5)
    layers: int | None = None

    def __post_init__(self) -> None:
        mistakes = [f"a share of the way must lie between 0 and 1, not {share}" for share in self.shares if not 0 <= share <= 1]
        mistakes += [f"layers must be at least 1, not {self.layers}"] if self.layers is not None and self.layers < 1 else []
        if mistakes:
            raise ConfigError(mistakes)


def weight_parts(model: PreTrainedModel) -> dict[str, tuple[str, ...]]:
    """{part: names of its parameters}: each layer ("layer 0"), all attention, all MLPs, the final norm, and what is outside.

    Layers, final norm and `OUTSIDE` (embeddings of tokens and places, the head; one matrix where these are tied) make up the
    whole model. Raises `NotShownError` for a model whose layers, attention or MLPs cannot be told by their names.
    """
    causal = causal_model(model)
    try:
        layers, norm = layer_names(model), layers_of(model).norm
    except ModelError as error:
        raise NotShownError(str(error)) from None
    named = dict(causal.named_parameters())
    parts = {f"layer {index}": _beginning(named, f"{layer}.") for index, layer in enumerate(layers)}
    within = {name: name.removeprefix(f"{layer}.") for layer in layers for name in _beginning(named, f"{layer}.")}
    parts |= {kind: tuple(name for name, inner in within.items() if _kind(inner) == kind) for kind in _KINDS}
    of_norm = {id(parameter) for parameter in norm.parameters()}
    parts[FINAL_NORM] = tuple(name for name, parameter in named.items() if id(parameter) in of_norm)
    parts[OUTSIDE] = tuple(name for name in named if name not in within and name not in parts[FINAL_NORM])
    empty = [part for part in parts if not parts[part]]
    if empty:
        raise NotShownError(f"{type(causal).__name__} has no weights that are named as {empty[0]}")
    return parts


def spread(n: int, limit: int | None) -> list[int]:
    """At most `limit` of the numbers below n, evenly from the first to the last; None: all."""
    if limit is None or limit >= n:
        return list(range(n))
    return sorted({round(index * (n - 1) / max(limit - 1, 1)) for index in range(limit)})


def restore(model: PreTrainedModel, original: PreTrainedModel, asked: AskedRows, part: str, *, batch_size: int = 32) -> Reading:
    """The answer probability of every row while one of `weight_parts` is the original's."""
    names, theirs = weight_parts(model)[part], same_parameters(model, original)
    with _in_place(model, {name: theirs[name] for name in names}):
        return probabilities(model, asked, {"restored": f"{part} restored"}, batch_size=batch_size)


def interpolate(
    model: PreTrainedModel, original: PreTrainedModel, asked: AskedRows, share: float, *, batch_size: int = 32
) -> Reading:
    """The answer probability of every row at `(1 - share) model + share original`, in float32 before it is rounded."""
    theirs, ours = same_parameters(model, original), dict(causal_model(model).named_parameters())
    mixed = {name: torch.lerp(ours[name].data.float(), theirs[name].to(ours[name].device).float(), share) for name in ours}
    with _in_place(model, mixed):
        return probabilities(model, asked, {"share of the way back": share}, batch_size=batch_size)


def same_parameters(model: PreTrainedModel, original: PreTrainedModel) -> dict[str, Tensor]:
    """The original's parameters by name. Raises `NotShownError` where they are not the model's, in name and shape."""
    ours, theirs = (dict(causal_model(each).named_parameters()) for each in (model, original))
    differing = sorted(name for name in {*ours, *theirs} if _shape(ours, name) != _shape(theirs, name))
    if differing:
        raise NotShownError(f"the model and its original are not built alike: they differ in {differing[0]}")
    return {name: parameter.data for name, parameter in theirs.items()}


def _shape(parameters: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(parameters[name].shape) if name in parameters else None


def _beginning(named: Mapping[str, Tensor], start: str) -> tuple[str, ...]:
    return tuple(name for name in named if name.startswith(start))


def _kind(name: str) -> str | None:
    """Attention or MLP: as the outermost module of a layer's parameter says that is called either."""
    for module in name.lower().split(".")[:-1]:
        for kind, called in _KINDS.items():
            if called.search(module) and not _NORM.search(module):
                return kind
    return None


@contextmanager
def _in_place(model: PreTrainedModel, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Other values in some parameters for a while; a tied matrix is one parameter."""
    parameters = dict(causal_model(model).named_parameters())
    before = {name: parameters[name].data for name in values}
    try:
        for name, value in values.items():
            parameters[name].data = value.to(before[name])
        yield
    finally:
        for name, data in before.items():
            parameters[name].data = data
