"""What all guards share: what they may look at, and a model of untouched weights that answers behind one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from d2unlearn.data.template import Template
from d2unlearn.generation.guarded import Answer, GuardedModel, Prompt
from d2unlearn.models import state_hash
from d2unlearn.runtime import fingerprint
from d2unlearn.schema import Example, Message


@dataclass(frozen=True)
class GuardInputs:
    """What a guard is fitted on: rows to keep away from, retained rows to tell them from, and retained rows, none of them
    among the former, that do nothing but set the threshold.
    """

    forget: Sequence[Example]
    retain: Sequence[Example]
    calibration: Sequence[Example]
    max_false_refusal: float = 0.01
    seed: int = 0


@dataclass(frozen=True)
class GuardThreshold:
    """How a guard decides: a request whose score exceeds `threshold` is dealt with.

    max_false_refusal None: no rate is promised.
    """

    score_name: str
    threshold: float
    max_false_refusal: float | None
    fingerprint: str


class Guard(ABC):
    """A way of guarding. Subclasses are frozen dataclasses; their fields are the guard's parameters."""

    refuses = True
    """Whether a flagged request is refused; a guard that does not leads to another answer. Not a parameter."""

    @abstractmethod
    def fit(self, base: GuardedModel, known: GuardInputs) -> ModelBehindGuard:
        """The model behind this guard. Trains nothing of the model; its weights stay as they are."""


class ModelBehindGuard(ABC):
    """A model of untouched weights behind a guard: of `GuardedModel` what an evaluation asks for."""

    def __init__(self, base: GuardedModel, gate: GuardThreshold) -> None:
        self.base = base
        self.gate = gate

    @property
    def model(self) -> PreTrainedModel:
        return self.base.model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.base.tokenizer

    @property
    def template(self) -> Template:
        return self.base.template

    @property
    def fingerprint(self) -> str:
        """Changes with the weights and the guard: what answers depend on beside the prompt."""
        return fingerprint([state_hash(self.model), self.gate.fingerprint])

    def answer(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int | None = None, batch_size: int = 16, raw: bool = False
    ) -> list[Answer]:
        """Answer each prompt greedily, in order. `raw`: without the guard."""
        if raw:
            return self.base.answer(prompts, max_new_tokens=max_new_tokens, batch_size=batch_size, raw=True)
        messages = [(Message("user", prompt),) if isinstance(prompt, str) else prompt for prompt in prompts]
        return self._guarded(messages, max_new_tokens, batch_size)

    @abstractmethod
    def _guarded(self, prompts: Sequence[tuple[Message, ...]], max_new_tokens: int | None, batch_size: int) -> list[Answer]:
        """The answers behind the guard, in order."""


class RefusesPrompts(ModelBehindGuard):
    """A model behind a guard that decides on the conversation alone, before anything is generated."""

    @abstractmethod
    def refusals(self, conversations: Sequence[tuple[Message, ...]]) -> list[str]:
        """The refusal to each conversation; empty where it is let in."""
