"""A decoder's layers, found in models of several families and in such as have none."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

import tiny_models
from d2unlearn.errors import ModelError
from d2unlearn.layers import layer_names, layers_of

NAMED = {"gpt2": ("transformer.h", "transformer.ln_f"), "neox": ("gpt_neox.layers", "gpt_neox.final_layer_norm")}
"""Where families keep their layers and the norm before the head; the others as Llama does."""


def neox() -> GPTNeoXForCausalLM:
    torch.manual_seed(0)
    return GPTNeoXForCausalLM(GPTNeoXConfig(**tiny_models.SIZES, **tiny_models.IDS)).eval()


@pytest.mark.parametrize("family", [*tiny_models.FAMILIES, "neox"])
def test_the_layers_and_the_norm_are_those_that_the_family_names(family: str) -> None:
    model = neox() if family == "neox" else tiny_models.FAMILIES[family]()
    layers, norm = NAMED.get(family, ("model.layers", "model.norm"))
    assert layer_names(model) == [f"{layers}.0", f"{layers}.1"]
    found = layers_of(model)
    assert found.blocks == (model.get_submodule(f"{layers}.0"), model.get_submodule(f"{layers}.1"))
    assert found.norm is model.get_submodule(norm)


class Odd(nn.Module):
    """No model of any family."""


def test_a_layer_s_experts_are_no_layers() -> None:
    model, layers = Odd(), [Odd(), Odd()]
    for layer in layers:
        layer.experts = nn.ModuleList(nn.Linear(2, 2) for _ in range(5))
    model.layers, model.norm = nn.ModuleList(layers), nn.LayerNorm(2)
    assert layer_names(model) == ["layers.0", "layers.1"]
    assert layers_of(model).norm is model.norm


def test_models_that_are_built_in_another_way_are_named() -> None:
    with pytest.raises(ModelError, match="Odd has no list of layers"):
        layers_of(Odd())
    bare = Odd()
    bare.layers = nn.ModuleList([nn.Linear(2, 2)])
    with pytest.raises(ModelError, match="Odd has no norm beside its layers"):
        layers_of(bare)
