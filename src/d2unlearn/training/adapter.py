"""What is trained of a model: low-rank adapters, fresh or those that it came with, and which parameters stay as they are."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from d2unlearn.errors import ConfigError
from d2unlearn.methods import Method
from d2unlearn.models import with_fresh_adapter
from d2unlearn.observation import causal_model
from d2unlearn.runtime import say

_PUT_IN_BY_PEFT = re.compile(r"^base_model\.model\.|\.lora_\w+(?:\.\w+)?(?=\.weight$)|\.base_layer")
"""What PEFT puts into the names of parameters."""


def adapted(model: nn.Module, peft_config: Any, *, checkpointing: bool) -> nn.Module:
    """The model with a fresh adapter when `peft_config` asks for one, ready for activation checkpointing.

    An adapter that the model came with is merged into its weights first: a second one of the same name would take its place,
    and training would start from another model than the reference. Raises `ConfigError` where that cannot be done, and when
    nothing is left to train.
    """
    if peft_config is not None:
        model = with_fresh_adapter(_merged(model), peft_config)
    if not _trains(model):
        raise ConfigError(
            ["the model has no trainable parameters; load its adapter with is_trainable=True, or give peft_config"]
        )
    if checkpointing and hasattr(model, "peft_config"):
        causal_model(model).enable_input_require_grads()  # type: ignore[operator]
    return model


def train_only_named(model: nn.Module, method: Method) -> nn.Module:
    """The model with every parameter frozen that the method does not train; an adapter's count by the weight they adapt.

    Raises `ConfigError` when nothing is left to train.
    """
    for name, parameter in model.named_parameters():
        if not method.trains(_PUT_IN_BY_PEFT.sub("", name)):
            parameter.requires_grad_(False)
    if not _trains(model):
        raise ConfigError([f"{type(method).__name__} names no parameter that is trained here (see trainable_params_regex)"])
    return model


def _trains(model: nn.Module) -> bool:
    """Whether anything of the model is trained."""
    return any(parameter.requires_grad for parameter in model.parameters())


def _merged(model: nn.Module) -> nn.Module:
    if not hasattr(model, "peft_config"):
        return model
    if not hasattr(model, "merge_and_unload"):
        raise ConfigError(["the model came with an adapter that cannot be merged: leave peft_config out to train that one"])
    say("the model came with an adapter: it is merged into the weights, and a fresh one is trained")
    merged: nn.Module = model.merge_and_unload()  # type: ignore[operator]
    return merged
