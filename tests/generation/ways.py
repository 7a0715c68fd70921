"""Tiny models of several families with a rule that refuses some of their answers, and answers judged the slow way."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

import tiny_models
from d2unlearn.data.batching import pad_left
from d2unlearn.energy import free_energy
from d2unlearn.gate.gated import GatedGenerator, Generation
from d2unlearn.gate.online import Decision
from d2unlearn.gate.rule import GateRule, RefusalTokens
from d2unlearn.gate.score import Score, request_scores
from d2unlearn.models import generate_of
from d2unlearn.refusals import refusal_index

ENDS = (2, 17, 33, 49, 65, 81)
"""Ids that end an answer: as many as it takes for random models to end some."""

WORDS = RefusalTokens(refusals=((7, 8), (9,), (10, 11, 12)), line_break=(13,), ends=ENDS, pad=0)
LENGTH = 10
FAMILIES = ("llama", "qwen2", "gpt2", "gemma2")


def family(name: str) -> PreTrainedModel:
    """Energies differ by nats inside an answer, too."""
    model = tiny_models.FAMILIES[name]()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1.5)
    model.generation_config.eos_token_id = list(ENDS)
    model.generation_config.pad_token_id = 0
    return model


def prompts(seed: int, n: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(20, tiny_models.VOCABULARY, size=rng.integers(2, 9)).tolist() for _ in range(n)]


def own_energies(model: PreTrainedModel, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
    """The energy that each token of an answer was chosen from: one plain forward over prompt and answer."""
    ids = torch.tensor([[*prompt, *answer]])
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
    return free_energy(logits[len(prompt) - 1 : -1]).tolist()


def until_end(tokens: Sequence[int]) -> list[int]:
    length = next((place + 1 for place, token in enumerate(tokens) if token in ENDS), len(tokens))
    return list(tokens[:length])


def rule(score: Score, threshold: float) -> GateRule:
    return GateRule(score, threshold, 1.0, None, 0.01, LENGTH, "float32", (), 0.002, 0)


def threshold_between(scores: np.ndarray) -> float:
    """In the widest gap of the middle half, so that no rounding moves a decision."""
    middle = np.sort(scores)[len(scores) // 4 : len(scores) - len(scores) // 4 + 1]
    place = int(np.argmax(np.diff(middle)))
    return float((middle[place] + middle[place + 1]) / 2)


@dataclass(frozen=True)
class Raw:
    """What a batch is answered without a gate, and the energies of each answer. `asked`: the prompt of each answer."""

    asked: list[list[int]]
    answers: list[list[int]]
    energies: list[list[float]]


def inputs(batch: Sequence[list[int]]) -> dict[str, Tensor]:
    ids, mask = pad_left(batch, 0)
    return {"input_ids": ids, "attention_mask": mask}


@contextmanager
def counted(model: PreTrainedModel) -> Iterator[list[int]]:
    """Collects the width of the ids of every forward pass."""
    widths: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    yield widths
    handle.remove()


def options_of(way: dict[str, Any]) -> dict[str, Any]:
    return {"max_new_tokens": LENGTH, "do_sample": False, **copy.copy(way)}


def raw(model: PreTrainedModel, batch: Sequence[list[int]], way: dict[str, Any], seed: int = 0) -> Raw:
    ids, mask = pad_left(batch, 0)
    torch.manual_seed(seed)
    sequences = generate_of(model)(input_ids=ids, attention_mask=mask, **options_of(way))
    found = [until_end(row[ids.shape[1] :].tolist()) for row in sequences]
    asked = [batch[row // (len(found) // len(batch))] for row in range(len(found))]
    return Raw(asked, found, [own_energies(model, p, a) for p, a in zip(asked, found, strict=True)])


@dataclass(frozen=True)
class Judged:
    """What the gate made of the sequences of a generation, and whether they were searched for by beams."""

    decisions: list[Decision]
    beams: bool

    @property
    def refused(self) -> list[bool]:
        return [decision.refused for decision in self.decisions]


def trusting(model: PreTrainedModel, made: GateRule) -> GatedGenerator:
    """One that takes the model's weights for those that the rule was calibrated on."""
    generator = GatedGenerator(model, WORDS)
    generator.weights.trust(made)
    return generator


def generated(model: PreTrainedModel, made: GateRule, batch: Sequence[list[int]], way: dict[str, Any]) -> Generation:
    ids, mask = pad_left(batch, 0)
    return trusting(model, made).generate(made, ids, mask, options_of(way))


def guarded(
    model: PreTrainedModel, made: GateRule, batch: Sequence[list[int]], way: dict[str, Any], seed: int = 0
) -> tuple[list[list[int]], Judged]:
    """The answers of the same generation with a gate, from the same seed, and what the gate made of them."""
    torch.manual_seed(seed)
    found = generated(model, made, batch, way)
    width = max(map(len, batch))
    return [row[width:].tolist() for row in found.output], Judged(found.decisions, way.get("num_beams", 1) > 1)


def check(made: GateRule, plain: Raw, answers: Sequence[list[int]], judged: Judged) -> list[bool]:
    """Each guarded answer is the raw one, or the refusal when the raw one's own score is above the threshold."""
    scores = request_scores(made.score, plain.energies)
    refused = (scores > made.threshold).tolist()
    assert judged.refused == refused
    for prompt, answer, found, above in zip(plain.asked, plain.answers, answers, refused, strict=True):
        wanted = [*WORDS.refusals[refusal_index(0, prompt, 3)], ENDS[0]] if above else answer
        assert found == [*wanted, *[0] * (len(found) - len(wanted))]
    for decision, own, score in zip(judged.decisions, plain.energies, scores.tolist(), strict=True):
        np.testing.assert_allclose(decision.energy, own[0], atol=1e-4)
        assert decision.score is not None
        if not decision.refused:
            np.testing.assert_allclose(decision.score, score, atol=1e-4)
            assert decision.n_tokens == len(own)
        else:
            assert made.threshold < decision.score
            if not judged.beams:  # a request of beams is decided while others lead than in the end
                assert decision.score <= score + 1e-4
                assert decision.n_tokens < len(own)
    return refused
