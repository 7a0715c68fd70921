"""Which parameters stay as they are: those that the method does not name."""

from __future__ import annotations

import re

from torch import nn

from d2unlearn.errors import ConfigError
from d2unlearn.methods import Method

WRAPPED = re.compile(r"^base_model\.model\.|\.lora_\w+(?:\.\w+)?(?=\.weight$)|\.base_layer")
"""What PEFT puts into the names of parameters."""


def train_only_named(model: nn.Module, method: Method) -> nn.Module:
    """The model with every parameter frozen that the method does not train; an adapter's count by the weight they adapt.

    Raises `ConfigError` when nothing is left to train.
    """
    for name, parameter in model.named_parameters():
        if not method.trains(WRAPPED.sub("", name)):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError([f"{type(method).__name__} names no parameter that is trained here (see trainable_params_regex)"])
    return model
