"""Low-rank adapters: every one trains, also behind checkpointed activations, and what cannot be trained is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import inject_adapter_in_model

import tiny_models
from d2unlearn.errors import ConfigError
from d2unlearn.training.adapter import with_fresh_adapter

from .runs import distance, lora, moved, trained, trainer, weights

pytestmark = pytest.mark.trains


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_activations_train_every_adapter_as_plain_ones_do(tmp_path: Path, reentrant: bool) -> None:
    """Without gradients at the inputs adapters inside the layers stay at zero (open-unlearning, issue 178)."""
    made = trainer(
        tmp_path,
        tiny_models.llama(),
        peft_config=lora(),
        activation_checkpointing=True,
        activation_checkpointing_kwargs={"use_reentrant": reentrant},
    )
    before = weights(made.model)
    adapters = [name for name in before if "lora_" in name]
    assert len(adapters) == 2 * 7 * 2  # A and B of the seven linear layers of each of the two blocks
    made.train()
    after = weights(made.model)
    assert moved(after, before) == adapters
    assert distance(after, trained(tmp_path, tiny_models.llama(), peft_config=lora())) < 1e-7


def test_cuts_of_the_effective_batch_give_the_same_adapter(tmp_path: Path) -> None:
    whole = trained(tmp_path, tiny_models.llama(), peft_config=lora(), per_device_train_batch_size=8)
    cut = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    assert distance(whole, trained(tmp_path, tiny_models.llama(), peft_config=lora(), **cut)) < 1e-5


def test_the_seed_alone_decides_an_adapter_s_first_weights(tmp_path: Path) -> None:
    found = []
    for noise, seed in ((1, 0), (2, 0), (2, 1)):
        model = tiny_models.llama()
        torch.manual_seed(noise)
        found.append(weights(trainer(tmp_path, model, peft_config=lora(), seed=seed).model))
    assert distance(found[0], found[1]) == 0.0
    assert distance(found[1], found[2]) > 1e-2


def test_an_adapter_that_came_with_the_model_is_trained_where_no_other_is_asked_for(tmp_path: Path) -> None:
    given = with_fresh_adapter(tiny_models.llama(), lora(init_lora_weights=False))
    before = weights(given)
    made = trainer(tmp_path, given, activation_checkpointing=True)
    made.train()
    assert moved(weights(made.model), before) == [name for name in before if "lora_" in name]


def test_an_adapter_that_came_with_the_model_is_merged_before_a_fresh_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = with_fresh_adapter(tiny_models.llama(), lora(init_lora_weights=False))
    expected = given.base_model.model.model.layers[0].mlp.up_proj.get_delta_weight("default")
    expected = expected + tiny_models.llama().model.layers[0].mlp.up_proj.weight
    made = trainer(tmp_path, given, peft_config=lora())
    assert "it is merged into the weights" in capsys.readouterr().err
    layer = made.model.base_model.model.model.layers[0].mlp.up_proj
    torch.testing.assert_close(layer.base_layer.weight, expected, rtol=1e-5, atol=1e-6)
    assert layer.lora_B["default"].weight.abs().max().item() == 0.0


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    frozen = with_fresh_adapter(tiny_models.llama(), lora(inference_mode=True))
    with pytest.raises(ConfigError, match="is_trainable=True"):
        trainer(tmp_path, frozen)
    inside = tiny_models.llama()
    inject_adapter_in_model(lora(), inside)
    with pytest.raises(ConfigError, match="cannot be merged"):
        trainer(tmp_path, inside, peft_config=lora())
