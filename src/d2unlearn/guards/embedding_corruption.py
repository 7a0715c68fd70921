"""ECO: answer a request that a classifier flags from embeddings of its prompt that noise was added to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from d2unlearn.errors import ConfigError
from d2unlearn.generation.guarded import Answer, GuardedModel
from d2unlearn.guards.base import Guard, GuardInputs, ModelBehindGuard
from d2unlearn.guards.input_classifier import Classifier, check_penalty, classify
from d2unlearn.guards.prompt_states import prompt_states
from d2unlearn.models import pad_token_id
from d2unlearn.refusals import content_seed
from d2unlearn.schema import Message

SAMPLED = 4096
"""Rows of the embedding table that its standard deviation is measured on."""


@dataclass(frozen=True)
class EmbeddingCorruption(Guard):
    """e <- e + strength * std(table) * n at the tokens of a flagged prompt; n: standard normal, drawn from prompt and seed.

    Special tokens keep their embeddings, so that the chat's frame stands. The model goes on to answer, as one that was asked
    something else; nothing is refused. The classifier is that of `InputClassifier`, its threshold included.

    Parameters (defaults: strength 1, C 1)
        strength   of the noise, in standard deviations of the embedding table
        C          the classifier's

    Source: Liu et al. 2024, arXiv 2406.07933 (RoBERTa as classifier, a second one for tokens, the strength found by search).
    """

    refuses = False
    strength: float = 1.0
    C: float = 1.0

    def __post_init__(self) -> None:
        check_penalty(self.C)
        if not 0 <= self.strength < float("inf"):
            raise ConfigError([f"strength must not be negative, not {self.strength}"])

    def fit(self, base: GuardedModel, known: GuardInputs) -> ModelBehindGuard:
        return Corrupting(base, classify(base, known, self.C), self.strength, known.seed)


class Corrupting(ModelBehindGuard):
    """Answers flagged prompts from corrupted embeddings, and the rest as ever."""

    def __init__(self, base: GuardedModel, classifier: Classifier, strength: float, seed: int) -> None:
        super().__init__(base, classifier.rule("embedding_corruption", strength=strength, seed=seed))
        self.classifier = classifier
        self.strength = strength
        self.seed = seed

    def _guarded(self, prompts: Sequence[tuple[Message, ...]], max_new_tokens: int | None, batch_size: int) -> list[Answer]:
        ids = [self.template.prompt_ids(prompt) for prompt in prompts]
        scores = self.classifier.score(prompt_states(self.model, ids, batch_size=batch_size).hidden)
        flagged = [i for i, score in enumerate(scores) if score > self.gate.threshold]
        passed = [i for i, score in enumerate(scores) if not score > self.gate.threshold]

        def answers_to(which: Sequence[int]) -> dict[int, Answer]:
            chosen = [prompts[i] for i in which]
            given = self.base.answer(chosen, max_new_tokens=max_new_tokens, batch_size=batch_size, raw=True)
            return dict(zip(which, given, strict=True))

        kept = [*self.tokenizer.all_special_ids, pad_token_id(self.tokenizer)]
        with corrupted(self.model, self.strength, kept=kept, seed=self.seed):
            answers = answers_to(flagged)
        answers |= answers_to(passed)
        return [replace(answers[i], score=float(scores[i]), threshold=self.gate.threshold) for i in range(len(prompts))]


@contextmanager
def corrupted(model: nn.Module, strength: float, *, kept: Sequence[int], seed: int) -> Iterator[None]:
    """While entered, prompts are read with noise on their embeddings; tokens of the answer, which come one by one, without.

    kept: ids whose embeddings stay as they are. The noise of a token depends on its prompt, its place in it and the seed, not
    on the batch or its padding. Works with the key-value cache, by which `generate` reads a prompt once.
    """
    table: nn.Module = model.get_input_embeddings()  # type: ignore[operator]
    spread = _spread(table)

    def corrupt(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        ids: Tensor = arguments[0]
        if ids.shape[1] == 1:
            return output
        return output + strength * spread * prompt_noise(ids, output.shape[2], kept, seed).to(output)

    handle = table.register_forward_hook(corrupt)
    try:
        yield
    finally:
        handle.remove()


def prompt_noise(ids: Tensor, width: int, kept: Sequence[int], seed: int) -> Tensor:
    """Standard normal noise, [B, T, H]; zero at the ids that are kept. ids: [B, T]."""
    noise = torch.zeros(*ids.shape, width)
    changed = ~torch.isin(ids.cpu(), torch.tensor(list(kept), dtype=ids.dtype))
    for row, places in enumerate(changed):
        content = ids[row].cpu()[places].tolist()
        generator = torch.Generator().manual_seed(content_seed(seed, content))
        noise[row, places] = torch.randn(len(content), width, generator=generator)
    return noise


@torch.no_grad()
def _spread(table: nn.Module) -> float:
    """Standard deviation of the embeddings as the model reads them."""
    weight: Tensor = table.weight  # type: ignore[assignment]
    return float(table(torch.arange(min(len(weight), SAMPLED), device=weight.device).unsqueeze(0)).float().std())
