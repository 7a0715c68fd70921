"""The ten things that fail without a word in stacks like these, one test each: that ours says something, or does not fail.

What is pinned more closely elsewhere is held here by its one decisive fact.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationMixin, LlamaForCausalLM, PreTrainedTokenizerFast

import d2unlearn
import tiny_models
from d2unlearn.energy import free_energy
from d2unlearn.gate import EnergyGate
from d2unlearn.gate.export import README
from d2unlearn.gate.probes import prompt_energies
from d2unlearn.gate.score import FirstTokens, Highest
from d2unlearn.stats import auroc

from .conftest import Halves, halves
from .engines import Params, probed
from .test_streams import Collected
from .test_vllm_plugin import engine
from .vllm_interfaces import EnergyGateLogitsProcessor, First, Second, Update
from .ways import family, guarded, prompts, rule

SOURCE = Path(d2unlearn.__file__).parent


@pytest.fixture(scope="module")
def split(gate: EnergyGate, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Halves:
    return halves(gate, model, tokenizer, FirstTokens(1), n=6)


@pytest.fixture(scope="module")
def folder(split: Halves, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("silent") / "artifact"
    split.guarded.model.save_pretrained(made)
    split.guarded.tokenizer.save_pretrained(made)
    assert split.guarded.gate is not None
    split.guarded.gate.save(made)
    return made


@pytest.mark.filterwarnings("ignore::d2unlearn.gate.gated.GateWarning")
def test_1_in_beam_search_processors_see_log_probabilities_and_the_gate_does_not_read_them() -> None:
    model, batch = family("llama"), prompts(3, 2)
    (_, judged) = guarded(model, rule(Highest(2), 1e9), batch, {"num_beams": 2})
    wanted = prompt_energies(model, batch, 1.0, None)
    np.testing.assert_allclose([decision.energy for decision in judged.decisions], wanted, atol=1e-4)
    assert (wanted < -1).all()


def test_2_a_callable_custom_generate_drops_the_streamer_so_none_is_used(split: Halves) -> None:
    ids, streamer = torch.tensor(split.ids[:1]), Collected()
    options: dict[str, Any] = {"max_new_tokens": 2, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    split.guarded.model.generate(ids, streamer=streamer, custom_generate=GenerationMixin._sample, **options)
    assert streamer.ended == 0
    split.guarded.generate(ids, streamer=streamer, **options)
    assert streamer.ended == 1


def test_3_without_trust_the_carried_gate_is_absent_and_the_note_says_so(folder: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(folder)
    assert "generate" not in vars(plain)
    assert (folder / README).read_text().splitlines()[0].startswith("**The gate is off unless")


def test_4_a_piece_of_a_prompt_asks_the_processor_and_decides_nothing(folder: Path, split: Halves) -> None:
    gate = probed(EnergyGateLogitsProcessor(engine(folder), torch.device("cpu"), False))
    gate.update_state(Update(1, [], [(0, Params(4, {2}), split.ids[0], [])], []))
    in_the_middle, at_the_end = torch.zeros(1, 176), torch.full((1, 176), 50.0)
    assert bool(gate.apply(in_the_middle.clone()).isinf().any())
    assert torch.equal(gate.apply(at_the_end.clone()), at_the_end)


def test_5_both_of_vllm_s_interfaces_take_the_one_class_and_no_entry_point_loads_it_unasked() -> None:
    assert issubclass(EnergyGateLogitsProcessor, First)
    assert issubclass(EnergyGateLogitsProcessor, Second)
    assert "vllm.logits_processors" not in (SOURCE.parents[1] / "pyproject.toml").read_text()


def test_6_what_vllm_does_to_logits_before_the_gate_is_turned_down() -> None:
    for changes in ({"logit_bias": {5: 1.0}}, {"allowed_token_ids": [5]}, {"repetition_penalty": 1.2}, {"bad_words": ["x"]}):
        with pytest.raises(ValueError, match=next(iter(changes))):
            EnergyGateLogitsProcessor.validate_params(type("Asked", (), changes)())


def test_7_flat_distributions_keep_their_gradient() -> None:
    """Kernels that leave out small probabilities leave out nearly all of a flat distribution's. None is used."""
    torch.manual_seed(0)
    logits = (0.5 * torch.randn(2, 150_000)).requires_grad_()
    (gradient,) = torch.autograd.grad(free_energy(logits).sum(), logits)
    assert float(gradient.abs().max()) < 2.4e-4
    assert gradient.sum().item() == pytest.approx(-2, abs=1e-4)
    sources = [path.read_text() for path in SOURCE.rglob("*.py")]
    assert not any("cut_cross_entropy" in text or "linear_cross_entropy" in text for text in sources)


def test_8_the_auroc_of_energies_does_not_move_with_a_constant() -> None:
    rng = np.random.default_rng(0)
    low, high = rng.normal(0, 1, 200), rng.normal(1, 1, 200)
    values = [auroc(low + shift, high + shift) for shift in (0.0, 20.0, -120.0)]
    assert values == [pytest.approx(values[0], abs=1e-12)] * 3
    assert 0.7 < values[0] < 0.85


def test_9_a_guarded_model_has_no_likelihoods_that_a_harness_could_compare(split: Halves) -> None:
    assert not callable(split.guarded)
    assert not hasattr(split.guarded, "forward")
    with pytest.raises(ValueError, match="prompt_logprobs"):
        EnergyGateLogitsProcessor.validate_params(type("Asked", (), {"prompt_logprobs": 0})())


@pytest.mark.parametrize("name", ["gemma2", "cohere", "granite"])
def test_10_energies_are_of_the_logits_that_the_model_returns_caps_and_scales_included(name: str) -> None:
    model, prompt = tiny_models.FAMILIES[name](), [[5, 6, 7, 8]]
    with torch.no_grad():
        output = model(input_ids=torch.tensor(prompt), output_hidden_states=True)
        naive = free_energy(output.hidden_states[-1][0, -1] @ model.get_output_embeddings().weight.T)
    (energy,) = prompt_energies(model, prompt, 1.0, None)
    assert energy == pytest.approx(float(free_energy(output.logits[0, -1])), abs=1e-4)
    assert abs(float(naive) - energy) > 0.05
