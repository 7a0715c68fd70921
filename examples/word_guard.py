"""A guard of one's own, whole: refuse a question with a word that only questions to be forgotten have.

python examples/word_guard.py MODEL FORGET RETAIN
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from d2unlearn import GuardedModel, hold_out, read_examples
from d2unlearn.generation.guarded import Answer
from d2unlearn.guards import Guard, GuardInputs, ModelBehindGuard, RefusesPrompts
from d2unlearn.guards.base import GuardThreshold
from d2unlearn.runtime import fingerprint
from d2unlearn.schema import Example, Message

REFUSAL = "I cannot help with that."


@dataclass(frozen=True)
class WordGuard(Guard):
    """score = how many different words of the request no retained question has, and a forget question has.

    A request is refused where it has more of them than `allowed`. Nothing is promised of false refusals.

    Parameters
        allowed   so many such words are still let in
    """

    allowed: int = 0

    def fit(self, base: GuardedModel, known: GuardInputs) -> ModelBehindGuard:
        forbidden = words_of(known.forget) - words_of([*known.retain, *known.calibration])
        return BehindWords(base, forbidden, self.allowed)


class BehindWords(RefusesPrompts):
    """Untouched weights that are asked only what holds few forbidden words."""

    def __init__(self, base: GuardedModel, forbidden: set[str], allowed: int) -> None:
        made_of = fingerprint(["word_guard", sorted(forbidden), allowed])
        super().__init__(base, GuardThreshold("word_guard", float(allowed), None, made_of))
        self.forbidden = forbidden

    def score(self, conversation: Sequence[Message]) -> float:
        """Of all that was said in the conversation."""
        return float(len(self.forbidden & words(turn.content for turn in conversation)))

    def refusals(self, conversations: Sequence[tuple[Message, ...]]) -> list[str]:
        return [REFUSAL if self.score(asked) > self.gate.threshold else "" for asked in conversations]

    def _guarded(self, prompts: Sequence[tuple[Message, ...]], max_new_tokens: int | None, batch_size: int) -> list[Answer]:
        passed = [asked for asked, refusal in zip(prompts, self.refusals(prompts), strict=True) if not refusal]
        given = iter(self.base.answer(passed, max_new_tokens=max_new_tokens, batch_size=batch_size, raw=True))
        answers = []
        for asked, refusal in zip(prompts, self.refusals(prompts), strict=True):
            score, threshold = self.score(asked), self.gate.threshold
            if refusal:
                answers.append(Answer(refusal, True, float("nan"), score, threshold, 0))
            else:
                raw = next(given)
                answers.append(Answer(raw.text, False, raw.energy, score, threshold, raw.n_tokens))
        return answers


def words(texts: Iterable[str]) -> set[str]:
    return {word for text in texts for word in re.findall(r"\w+", text.lower())}


def words_of(rows: Iterable[Example]) -> set[str]:
    """All words of the rows' questions."""
    return words(turn.content for row in rows for turn in row.prompt)


if __name__ == "__main__":
    model, forget_file, retain_file = sys.argv[1:]
    base = GuardedModel.from_pretrained(model, raw=True)
    forget, retain = read_examples(forget_file), hold_out(read_examples(retain_file), seed=0)
    fitted_on, unseen = retain.held_out[::2], retain.held_out[1::2]
    guarded = WordGuard().fit(base, GuardInputs(forget, retain.train, fitted_on))
    for name, rows in (("forget", forget), ("retained, not fitted on", unseen)):
        answers = guarded.answer([row.prompt for row in rows], max_new_tokens=16)
        print(f"{name}: {sum(answer.refused for answer in answers)} of {len(rows)} refused")
