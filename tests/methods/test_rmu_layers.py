"""Which layer RMU steers, which parameters it trains, and in which direction."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import tiny_models
from d2unlearn.errors import ConfigError
from d2unlearn.methods.rmu import RMU, _unit_vector


def deep(layers: int) -> LlamaForCausalLM:
    sizes = {**tiny_models.SIZES, "num_hidden_layers": layers}
    return LlamaForCausalLM(LlamaConfig(**sizes, **tiny_models.IDS, num_key_value_heads=2))


@pytest.mark.parametrize(("layers", "steered"), [(1, 0), (4, 1), (16, 4), (32, 7)])
def test_the_layer_is_as_deep_as_the_published_one(layers: int, steered: int) -> None:
    method = RMU().for_model(deep(layers))
    assert method.module_regex == f"model.layers.{steered}"
    trained = {n.split(".")[2] for n, _ in deep(layers).named_parameters() if method.trains(n)}
    assert trained == {str(i) for i in range(max(0, steered - 2), steered + 1)}


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "qwen2"])
def test_every_family_has_layers(family: str) -> None:
    model = tiny_models.FAMILIES[family]()
    method = RMU().for_model(model)
    trained = [name for name, _ in model.named_parameters() if method.trains(name)]
    first = {"gpt2": "transformer.h.0."}.get(family, "model.layers.0.")
    assert trained == [name for name, _ in model.named_parameters() if name.startswith(first)]


def test_a_pattern_names_the_layer_and_others_the_parameters() -> None:
    method = RMU(module_regex=r"model\.layers\.3", trainable_params_regex=[r"model\.layers\.(2|3)\.mlp\.down_proj\.weight"])
    bound = method.for_model(deep(4))
    assert bound.module_regex == "model.layers.3"
    trained = [name for name, _ in deep(4).named_parameters() if bound.trains(name)]
    assert trained == ["model.layers.2.mlp.down_proj.weight", "model.layers.3.mlp.down_proj.weight"]


def test_a_module_within_a_layer_trains_that_layer() -> None:
    bound = RMU(module_regex=r"model\.layers\.1\.mlp").for_model(deep(4))
    assert bound.trains("model.layers.1.self_attn.q_proj.weight")
    assert not bound.trains("model.layers.10.mlp.down_proj.weight")
    assert not bound.trains("model.embed_tokens.weight")


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"module_regex": r"model\.layers\.7"}, "fits no submodule of LlamaForCausalLM"),
        ({"module_regex": r"model\.layers\.\d"}, "fits 4 submodules"),
        ({"module_regex": r"model\.norm"}, "is in no decoder layer"),
        ({"trainable_params_regex": ["nothing"]}, "fits no parameter of LlamaForCausalLM: nothing"),
        ({"control_direction": [1.0] * 31}, "has 31 numbers, the hidden states 32"),
    ],
)
def test_names_that_fit_nothing_are_mistakes(parameters: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        RMU(**parameters).for_model(deep(4))


def test_the_direction_is_of_length_one_and_drawn_by_seed() -> None:
    drawn = [_unit_vector(None, seed, 64) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert drawn[2].norm().item() == pytest.approx(1)
    assert bool((drawn[2] >= 0).all())
    torch.testing.assert_close(_unit_vector((3.0, -4.0), 0, 2), torch.tensor([0.6, -0.8]))
