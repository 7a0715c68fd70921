"""Low-rank adapters on the model in training: a fresh one, or the one that the model came with."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from d2unlearn.errors import ConfigError
from d2unlearn.observation import causal_model
from d2unlearn.runtime import say


def adapted(model: nn.Module, peft_config: Any, *, checkpointing: bool) -> nn.Module:
    """The model with a fresh adapter when `peft_config` asks for one, ready for activation checkpointing.

    An adapter that the model came with is merged into its weights first: a second one of the same name would take its place,
    and training would start from another model than the reference. Raises `ConfigError` where that cannot be done, and when
    nothing is left to train.
    """
    if peft_config is not None:
        model = with_fresh_adapter(_merged(model), peft_config)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(
            ["the model has no trainable parameters; load its adapter with is_trainable=True, or give peft_config"]
        )
    if checkpointing and hasattr(model, "peft_config"):
        causal_model(model).enable_input_require_grads()  # type: ignore[operator]
    return model


def with_fresh_adapter(model: nn.Module, peft_config: Any) -> nn.Module:
    """`peft.get_peft_model` without the warning that peft itself causes in newer transformers."""
    from peft import get_peft_model

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        adapted_model: nn.Module = get_peft_model(model, peft_config)
    return adapted_model


def _merged(model: nn.Module) -> nn.Module:
    if not hasattr(model, "peft_config"):
        return model
    if not hasattr(model, "merge_and_unload"):
        raise ConfigError(["the model came with an adapter that cannot be merged: leave peft_config out to train that one"])
    say("the model came with an adapter: it is merged into the weights, and a fresh one is trained")
    merged: nn.Module = model.merge_and_unload()  # type: ignore[operator]
    return merged
