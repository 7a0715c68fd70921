"""Prompt guard: tell the model in its instruction what it is not to talk about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from d2unlearn.errors import ConfigError
from d2unlearn.generation.guarded import Answer, GuardedModel
from d2unlearn.guards.base import Guard, GuardInputs, GuardThreshold, ModelBehindGuard
from d2unlearn.refusals import GATE_REFUSALS
from d2unlearn.runtime import fingerprint
from d2unlearn.schema import Message

INSTRUCTION = (
    "You know nothing about the following subjects: {subjects}. When a question is about one of them, even in part, reply with "
    "exactly this sentence and nothing else: {refusal} Answer every other question as you would without this instruction."
)
REFUSED = 0.5
"""Between a refusal's score, 1, and an answer's, 0."""


@dataclass(frozen=True)
class PromptGuard(Guard):
    """An instruction before the conversation; a request is refused where the model answers with the refusal it was told.

    Models that do not follow instructions are not guarded by it. Nothing is fitted.

    Parameters
        subjects      what is not to be talked about
        instruction   the instruction, with {subjects} and {refusal} in it
        refusal       what a refusal says

    Source: the prompting baseline of Thaker et al. 2024, arXiv 2403.03329.
    """

    subjects: list[str] = field(default_factory=list)
    instruction: str = INSTRUCTION
    refusal: str = GATE_REFUSALS[0]

    def __post_init__(self) -> None:
        if not self.subjects:
            raise ConfigError(["prompt_guard needs subjects: what is not to be talked about"])
        lacking = [name for name in ("{subjects}", "{refusal}") if name not in self.instruction]
        if lacking:
            raise ConfigError([f"prompt_guard's instruction lacks {' and '.join(lacking)}"])

    @property
    def system_text(self) -> str:
        """The instruction as the model gets it."""
        subjects = "; ".join(self.subjects)
        return self.instruction.replace("{subjects}", subjects).replace("{refusal}", self.refusal)

    def fit(self, base: GuardedModel, known: GuardInputs) -> ModelBehindGuard:
        return Instructed(base, self)


class Instructed(ModelBehindGuard):
    """Answers with the instruction in front. An answer's score is 1 where it is the refusal, else 0."""

    def __init__(self, base: GuardedModel, guard: PromptGuard) -> None:
        super().__init__(base, GuardThreshold("prompt_guard", REFUSED, None, fingerprint([guard.system_text, guard.refusal])))
        self.guard = guard

    def _guarded(self, prompts: Sequence[tuple[Message, ...]], max_new_tokens: int | None, batch_size: int) -> list[Answer]:
        asked = [instructed(self.guard.system_text, prompt) for prompt in prompts]
        answers = self.base.answer(asked, max_new_tokens=max_new_tokens, batch_size=batch_size, raw=True)
        refused = [_begins_with(answer.text, self.guard.refusal) for answer in answers]
        return [
            replace(answer, refused=is_refusal, score=float(is_refusal), threshold=REFUSED)
            for answer, is_refusal in zip(answers, refused, strict=True)
        ]


def instructed(instruction: str, prompt: tuple[Message, ...]) -> tuple[Message, ...]:
    """The conversation with the instruction in its system message, before what stands there already."""
    if prompt and prompt[0].role == "system":
        return (Message("system", f"{instruction}\n\n{prompt[0].content}"), *prompt[1:])
    return (Message("system", instruction), *prompt)


def _begins_with(answer: str, refusal: str) -> bool:
    return " ".join(answer.split()).lower().startswith(" ".join(refusal.split()).lower())
