"""Ways that no gate can watch end in an error that says what can be done; none of them runs unguarded."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from d2unlearn.errors import GateError
from d2unlearn.gate.gated import GateWarning
from d2unlearn.gate.score import FirstTokens, Highest

from .conftest import Halves
from .ways import counted, family, inputs, options_of, prompts, rule, trusting

UNWATCHED: dict[str, tuple[dict[str, Any], str]] = {
    "another generate": ({"custom_generate": "somewhere"}, "custom_generate"),
    "continuous batching": ({"cache_implementation": "paged"}, "continuous batching"),
    "continuous batching, configured": ({"generation_config": GenerationConfig(cache_implementation="paged")}, "continuous"),
    "groups of beams": ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0}, "group beam search"),
    "beams with words": ({"num_beams": 2, "force_words_ids": [[5]]}, "constrained beam search"),
    "contrastive": ({"penalty_alpha": 0.6, "top_k": 4}, "contrastive search"),
    "layers": ({"dola_layers": "low"}, "dola generation"),
    "guidance": ({"guidance_scale": 1.5}, "classifier-free guidance"),
    "healing": ({"token_healing": True}, "token healing"),
    "adapters row by row": ({"adapter_names": ["__base__"]}, "adapters chosen row by row"),
    "drafts on a cache": ({"prompt_lookup_num_tokens": 2, "cache": DynamicCache()}, "goes on from a cache"),
}


@pytest.mark.parametrize("way", UNWATCHED)
def test_it_is_refused_before_the_model_runs_and_allowed_raw(early: Halves, way: str) -> None:
    options, message = UNWATCHED[way]
    ids = torch.tensor(early.ids[:1])
    with counted(early.guarded.model) as widths, pytest.raises(GateError, match=rf"cannot watch .*{message}.*raw=True"):
        early.guarded.generate(ids, torch.ones_like(ids), **{"max_new_tokens": 4, "do_sample": False, **options})
    assert widths == []


def test_continuous_batching_is_refused_by_its_own_name(early: Halves) -> None:
    with pytest.raises(GateError, match="continuous batching chooses tokens where no gate can look"):
        early.guarded.generate_batch(early.ids, max_new_tokens=4)


def test_a_guarded_model_scores_no_likelihoods(early: Halves) -> None:
    """A harness that compares likelihoods never generates: there is nothing on a guarded model that it could call."""
    assert not callable(early.guarded)
    for name in ("forward", "logits", "loglikelihood", "config"):
        assert not hasattr(early.guarded, name)


class AsksAgain(LogitsProcessor):
    """Runs the model on other ids, as guidance does."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.model(input_ids=input_ids[:, :1])
        return scores


@pytest.mark.parametrize("way", [{}, {"num_beams": 2}])
@pytest.mark.filterwarnings("ignore::d2unlearn.gate.gated.GateWarning")
def test_a_processor_that_runs_the_model_is_noticed(way: dict[str, Any]) -> None:
    """The latest energies are then those of its pass, not of the token's."""
    model = family("llama")
    options = options_of({**way, "logits_processor": LogitsProcessorList([AsksAgain(model)])})
    made = rule(Highest(2), 0)
    with pytest.raises(GateError, match="ran 2 times before one token was chosen, 1 expected"):
        trusting(model, made).generate(made, *inputs(prompts(3, 2)).values(), options)


@pytest.mark.parametrize(
    ("way", "word"),
    [
        ({"do_sample": True}, "sampling"),
        ({"num_beams": 2}, "beam search"),
        ({"num_beams": 2, "do_sample": True}, "sampling"),
        ({"prompt_lookup_num_tokens": 2}, None),
        ({"prompt_lookup_num_tokens": 2, "do_sample": True}, "sampling"),
        ({}, None),
    ],
)
def test_answers_that_are_not_greedy_are_warned_of_once(way: dict[str, Any], word: str | None) -> None:
    made, given = rule(Highest(2), 0), inputs(prompts(3, 1)).values()
    generator = trusting(family("llama"), made)
    if word is not None:
        with pytest.warns(GateWarning, match=rf"{word} with a gate .* at most 1.00% .* stated for greedy decoding"):
            generator.generate(made, *given, options_of(way))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generator.generate(made, *given, options_of(way))


def test_the_caller_s_own_configuration_is_left_as_it_is() -> None:
    config = GenerationConfig(num_beams=2, max_new_tokens=3, eos_token_id=2)
    before = config.to_dict()
    made = rule(FirstTokens(1), 1e9)
    generator = trusting(family("llama"), made)
    with pytest.warns(GateWarning):
        sequences = generator.generate(made, *inputs(prompts(3, 2)).values(), {"generation_config": config}).output
    assert config.to_dict() == before
    assert isinstance(sequences, torch.Tensor)
