"""Every way of decoding: the same decision at the prompt, and later looks that follow each answer's own tokens."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import DynamicCache, PreTrainedModel

from d2unlearn.data.batching import pad_left
from d2unlearn.energy import free_energy
from d2unlearn.gate.score import FirstTokens, Highest, MaxOf, MaxOverLooks, Score, TrailingWindow, request_scores
from d2unlearn.models import generate_of
from d2unlearn.refusals import refusal_index

from .ways import (
    FAMILIES,
    WORDS,
    check,
    counted,
    family,
    generated,
    guarded,
    inputs,
    options_of,
    own_energies,
    prompts,
    raw,
    rule,
    threshold_between,
    trusting,
    until_end,
)

pytestmark = pytest.mark.filterwarnings("ignore::d2unlearn.gate.gated.GateWarning")

WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 0},
    "several sequences": {"do_sample": True, "top_k": 5, "num_return_sequences": 3},
    "beams": {"num_beams": 3},
    "beams, two back": {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.5},
    "beams, stopped early": {"num_beams": 3, "early_stopping": True, "num_return_sequences": 3},
    "beams, sampled": {"num_beams": 3, "do_sample": True, "top_k": 0},
    "chunked prefill": {"prefill_chunk_size": 3},
    "chunked prefill, beams": {"prefill_chunk_size": 2, "num_beams": 2},
    "static cache": {"cache_implementation": "static"},
    "static cache, beams": {"cache_implementation": "static", "num_beams": 2},
    "no cache": {"use_cache": False},
    "no cache, beams": {"use_cache": False, "num_beams": 2},
}

SCORES: dict[str, Score] = {
    "highest": Highest(2),
    "window": TrailingWindow(3),
    "first": FirstTokens(4),
    "max-of": MaxOf((MaxOverLooks(1, 4), TrailingWindow(2))),
}


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return family(request.param)


@pytest.fixture(scope="module")
def batch() -> list[list[int]]:
    return prompts(3, 6)


@pytest.mark.parametrize("way", WAYS)
def test_the_decision_at_the_prompt_is_that_of_a_single_request(
    model: PreTrainedModel, batch: list[list[int]], way: str
) -> None:
    energies = np.array([own_energies(model, prompt, [0])[0] for prompt in batch])
    made = rule(FirstTokens(1), threshold_between(energies))
    plain = raw(model, batch, WAYS[way])
    refused = check(made, plain, *guarded(model, made, batch, WAYS[way]))
    assert refused == (energies > made.threshold).repeat(len(refused) // len(batch)).tolist()
    assert 0 < sum(refused) < len(refused)


@pytest.mark.parametrize("way", WAYS)
def test_later_looks_follow_each_answer_s_own_tokens(model: PreTrainedModel, batch: list[list[int]], way: str) -> None:
    """Llama with every score, the other families with one that has the parts of several."""
    plain = raw(model, batch, WAYS[way])
    for score in SCORES.values() if model.config.model_type == "llama" else [SCORES["max-of"]]:
        fitted = score.fit(plain.energies)
        made = rule(fitted, threshold_between(request_scores(fitted, plain.energies)))
        refused = check(made, plain, *guarded(model, made, batch, WAYS[way]))
        assert 0 < sum(refused) < len(refused)


def drafting(model: PreTrainedModel, noise: float, seed: int = 0) -> PreTrainedModel:
    """An assistant that is right now and then: the model itself with noise on its head."""
    torch.manual_seed(seed)
    assistant = copy.deepcopy(model)
    with torch.no_grad():
        head = assistant.get_output_embeddings().weight
        head.add_(noise * head.std() * torch.randn_like(head))
    assistant.generation_config.num_assistant_tokens = 4
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    assistant.generation_config.assistant_confidence_threshold = 0.0
    return assistant


ASSISTED: dict[str, Any] = {
    "mostly right": lambda model: {"assistant_model": drafting(model, 0.3)},
    "mostly wrong": lambda model: {"assistant_model": drafting(model, 1.5)},
    "itself": lambda model: {"assistant_model": model},
    "prompt lookup": lambda model: {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1},
    "sampled": lambda model: {"assistant_model": drafting(model, 0.3), "do_sample": True, "top_k": 0},
}


@pytest.mark.parametrize("draft", ASSISTED)
def test_assisted_decoding_is_judged_by_the_tokens_that_were_accepted(
    model: PreTrainedModel, batch: list[list[int]], draft: str
) -> None:
    """One request at a time; drafts that are thrown away, and the assistant's own passes, leave no trace."""
    way = ASSISTED[draft](model)
    plain = [raw(model, [prompt], way) for prompt in batch]
    energies = [each.energies[0] for each in plain]
    for score in (FirstTokens(1), SCORES["max-of"]):
        fitted = score.fit(energies)
        made = rule(fitted, threshold_between(request_scores(fitted, energies)))
        refused = [check(made, p, *guarded(model, made, [prompt], way)) for p, prompt in zip(plain, batch, strict=True)]
        assert 0 < sum(map(sum, refused)) < len(batch)
    if draft in ("mostly right", "mostly wrong", "itself", "prompt lookup"):
        assert [each.answers[0] for each in plain] == raw(model, batch, {}).answers


def test_an_assistant_that_leaves_the_model_early() -> None:
    """Its passes go through the model that is watched."""
    model, batch = family("llama"), prompts(3, 6)
    way = {"assistant_early_exit": 1}
    plain = [raw(model, [prompt], way) for prompt in batch]
    energies = [each.energies[0] for each in plain]
    made = rule(Highest(2), threshold_between(request_scores(Highest(2), energies)))
    for each, prompt in zip(plain, batch, strict=True):
        check(made, each, *guarded(model, made, [prompt], way))


def test_an_assistant_needs_no_more_passes_with_a_gate() -> None:
    model, batch = family("llama"), prompts(3, 6)
    way = ASSISTED["mostly right"](model)
    with counted(model) as plain:
        raw_answers = [raw(model, [prompt], way).answers for prompt in batch]
    judging = len(batch)  # one plain pass an answer
    with counted(model) as watched:
        found = [guarded(model, rule(Highest(2), 1e9), [prompt], way)[0] for prompt in batch]
    assert len(watched) == len(plain) - judging
    assert [until_end(answer) for answers in found for answer in answers] == [a for answers in raw_answers for a in answers]
    assert len(watched) < sum(len(answer) for answers in found for answer in answers)


@pytest.mark.parametrize("way", ["greedy", "beams", "beams, two back", "chunked prefill, beams"])
def test_an_answer_does_not_depend_on_its_batch(model: PreTrainedModel, batch: list[list[int]], way: str) -> None:
    plain = raw(model, batch, WAYS[way])
    fitted = SCORES["max-of"].fit(plain.energies)
    made = rule(fitted, threshold_between(request_scores(fitted, plain.energies)))
    together, judged = guarded(model, made, batch, WAYS[way])
    alone = [guarded(model, made, [prompt], WAYS[way]) for prompt in batch]
    assert judged.refused == [refused for _, one in alone for refused in one.refused]
    assert list(map(until_end, together)) == [until_end(answer) for answers, _ in alone for answer in answers]
    both = zip(judged.decisions, [decision for _, one in alone for decision in one.decisions], strict=True)
    for one, other in both:
        np.testing.assert_allclose([one.energy, one.score], [other.energy, other.score], atol=1e-4)
        assert one.n_tokens == other.n_tokens


@pytest.mark.parametrize("way", ["beams", "beams, two back", "beams, sampled"])
def test_beams_of_a_refused_request_are_searched_no_further(way: str) -> None:
    """One pass when the prompt decides; as many as it takes until no hypothesis is left that is not refused."""
    model, batch = family("llama"), prompts(3, 2)
    for score, passes in ((FirstTokens(1), 1), (FirstTokens(3), 3), (TrailingWindow(2), 2)):
        with counted(model) as widths:
            answers, judged = guarded(model, rule(score, -1e9), batch, WAYS[way])
        assert all(judged.refused)
        assert len(widths) == passes
        assert all(
            answer[: len(refusal)] == list(refusal) for answer, refusal in zip(answers, refusals(batch, answers), strict=True)
        )
    with counted(model) as plain_widths:
        generate_of(model)(**inputs(batch), **options_of(WAYS[way]))
    with counted(model) as guarded_widths:
        guarded(model, rule(Highest(2), 1e9), batch, WAYS[way])
    assert way == "beams, sampled" or guarded_widths == plain_widths


def refusals(batch: list[list[int]], answers: list[list[int]]) -> list[list[int]]:
    each = len(answers) // len(batch)
    return [[*WORDS.refusals[refusal_index(0, batch[row // each], 3)], WORDS.ends[0]] for row in range(len(answers))]


def test_one_hypothesis_is_refused_and_another_answers() -> None:
    """A request is not refused for a hypothesis that does not come back."""
    model, batch, way = family("llama"), prompts(3, 6), {"num_beams": 4, "num_return_sequences": 4}
    plain = raw(model, batch, way)
    scores = np.sort(request_scores(FirstTokens(9), plain.energies[:4]))
    made = rule(FirstTokens(9), float(scores[1:3].mean()))
    refused = check(made, plain, *guarded(model, made, batch, way))
    assert sum(refused[:4]) == 2


def test_the_gate_leaves_the_search_as_it_is() -> None:
    """Log-probabilities sum to one in every row, so a gate that read energies from them would see zero everywhere (or
    nothing); and beams change places, so that energies taken by their place would be those of another hypothesis.
    """
    model, batch, way = family("llama"), prompts(3, 3), {"num_beams": 3, "num_return_sequences": 3}
    ids, mask = pad_left(batch, 0)
    made = rule(Highest(2), 1e9)
    options = options_of({**way, "output_scores": True, "return_dict_in_generate": True})
    plain = generate_of(model)(input_ids=ids, attention_mask=mask, **options)
    found = trusting(model, made).generate(made, ids, mask, dict(options))
    output = found.output
    assert torch.equal(output.sequences_scores, plain.sequences_scores)
    assert torch.equal(output.beam_indices, plain.beam_indices)
    moved = (plain.beam_indices[:, 1:] != plain.beam_indices[:, :1]) & (plain.beam_indices[:, 1:] >= 0)
    assert moved.any()
    np.testing.assert_allclose([float(free_energy(step).abs().max()) for step in plain.scores], 0, atol=1e-4)
    assert all(decision.energy < -1 for decision in found.decisions)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("way", ["greedy", "beams", "chunked prefill"])
@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_an_adapter_is_judged_as_the_model_that_it_makes(name: str, way: str) -> None:
    plain_model = family(name)
    torch.manual_seed(1)
    model = get_peft_model(plain_model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)).eval()
    batch = prompts(3, 6)
    plain = raw(model, batch, WAYS[way])
    with model.disable_adapter():
        without = own_energies(model, batch[0], plain.answers[0])
    assert np.abs(np.array(without) - plain.energies[0]).max() > 0.05
    for score in (FirstTokens(1), Highest(2)):
        made = rule(score, threshold_between(request_scores(score, plain.energies)))
        refused = check(made, plain, *guarded(model, made, batch, WAYS[way]))
        assert 0 < sum(refused) < len(refused)


def test_the_conversation_s_cache_is_gone_on_from() -> None:
    """A cache of the conversation's first turns: the prompt ends where its last token is."""
    model, prompt = family("llama"), prompts(3, 1)[0] + prompts(4, 1)[0]
    ids = torch.tensor([prompt])
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"  # the older name
    given = {name: DynamicCache(config=model.config)}
    with torch.no_grad():
        model(input_ids=ids[:, :4], **given)
    (plain,) = raw(model, [prompt], {}).energies
    (decision,) = generated(model, rule(Highest(2), 1e9), [prompt], given).decisions
    assert decision.energy == pytest.approx(plain[0], abs=1e-4)
    assert decision.score == pytest.approx(np.sort(plain)[-2:].mean(), abs=1e-4)
