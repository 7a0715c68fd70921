"""Energies are read from what the model itself returns, for every family, and from one forward pass a token."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from d2unlearn import free_energy
from d2unlearn.errors import GateError, ModelError
from d2unlearn.gate.probes import prompt_energies
from d2unlearn.gate.recorder import EnergyRecorder
from d2unlearn.models import generate_of
from d2unlearn.observation import causal_model
from tiny_models import FAMILIES, llama

PROMPTS = [[5, 6, 7, 8], [9, 10], [11, 12, 13, 14, 15, 16]]


@pytest.mark.parametrize("family", FAMILIES)
def test_soft_caps_scales_and_tied_heads_are_in_the_energy(family: str) -> None:
    """Hidden states times the head's weights are not the logits of every family; the energy is that of the logits."""
    model = FAMILIES[family]()
    found = prompt_energies(model, PROMPTS, 1.0, None)
    for prompt, energy in zip(PROMPTS, found, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt])).logits[0, -1]
        assert energy == pytest.approx(float(free_energy(logits)), abs=1e-4)
    if family in ("gemma2", "cohere", "granite"):
        with torch.no_grad():
            hidden = model(input_ids=torch.tensor([PROMPTS[0]]), output_hidden_states=True).hidden_states[-1][0, -1]
            naive = free_energy(hidden @ model.get_output_embeddings().weight.T)
        assert abs(float(naive) - found[0]) > 0.05


def test_every_position_that_has_logits() -> None:
    model = llama()
    ids = torch.tensor([PROMPTS[2]])
    with EnergyRecorder(model, every_position=True, vocab_rows=100, temperature=2.0) as recorder:
        logits = model(input_ids=ids, logits_to_keep=3).logits
    energies = recorder.take()
    assert torch.equal(energies, free_energy(logits[..., :100], 2.0))
    assert energies.shape == (1, 3)
    assert recorder.n_fed == 6


def test_one_forward_pass_a_token_or_an_error() -> None:
    model = llama()
    ids = torch.tensor([PROMPTS[0]])
    with EnergyRecorder(model) as recorder:
        with pytest.raises(GateError, match="no forward hook saw"):
            recorder.take()
        model(input_ids=ids)
        recorder.take()
        with pytest.raises(GateError, match="no forward hook saw"):  # not the energies of the token before
            recorder.take()
        model(input_ids=ids)
        model(input_ids=ids[:, :2])
        with pytest.raises(GateError, match="ran 2 times before one token"):
            recorder.take()
        model(input_ids=ids)
        model(input_ids=ids[:, :2])
        assert torch.equal(recorder.take(forwards=None), free_energy(model(input_ids=ids[:, :2]).logits[:, -1:]))


class _Doubled(torch.nn.Module):
    """Hands on another model's output with its logits doubled."""

    def forward(self, output: object) -> object:
        output.logits = 2 * output.logits  # type: ignore[attr-defined]
        return output


def test_a_model_whose_tokens_come_from_other_logits_is_not_guarded() -> None:
    """A hook that changes the logits after they were read."""
    model = llama()
    double = _Doubled()
    before = type(model).__call__

    def changed(self: PreTrainedModel, *args: object, **named: object) -> object:
        return double(before(self, *args, **named))

    class Changed(type(model)):  # type: ignore[misc]
        __call__ = changed

    model.__class__ = Changed
    with pytest.raises(ModelError, match=r"Changed chooses tokens from other logits than a forward hook reads"):
        prompt_energies(model, PROMPTS, 1.0, None)


def test_the_class_s_own_generate_is_used() -> None:
    """A checkpoint's `custom_generate` takes the place of `generate` on the model itself."""
    model = llama()
    model.generate = lambda **_: pytest.fail("the checkpoint's own generate was called")  # type: ignore[method-assign]
    ids = torch.tensor([PROMPTS[0]])
    options = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 0}
    assert generate_of(model)(max_new_tokens=1, **options).shape[1] == 5
    assert np.isfinite(prompt_energies(model, PROMPTS, 1.0, None)).all()
    assert causal_model(model) is model
