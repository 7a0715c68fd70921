"""Questions with several choices of which one is right, decided by likelihood: no answer needs to be generated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from d2unlearn.benchmark.loglikelihood import AnswerScores
from d2unlearn.benchmark.metrics import Metric, MetricInputs, MetricValue, OfOneSet, averaged

ABOVE = 1.96
"""Standard errors of a guess by which an accuracy has to exceed chance before it counts as above it."""


@dataclass(frozen=True)
class ChoiceAccuracy(OfOneSet):
    """Share of questions whose right choice is the likeliest, as a whole text. `wrong`: the column of the others.

    `refusal`: what a question counts that the gate refuses, wrong or a guess (one in as many as there are choices); "": raw.
    """

    wrong: str
    refusal: Literal["", "wrong", "guessed"] = ""

    @property
    def meaning(self) -> str:
        return "share of questions whose right choice is the likeliest: chance is one in as many as there are"

    def behind_gate(self, key: str) -> Mapping[str, Metric]:
        return {f"{key}_refusal_{counts}": replace(self, refusal=counts) for counts in ("wrong", "guessed")}

    def compute(self, inputs: MetricInputs) -> MetricValue:
        scored = inputs.sets[self.on]
        choices = list(zip(scored.true, scored.others.get(self.wrong, ()), strict=True))
        values = [right_choice(right, wrong) for right, wrong in choices]
        if self.refusal:
            for index, decision in enumerate(scored.decisions):
                guess = 1 / (1 + len(choices[index][1]))
                values[index] = values[index] if not decision.refused else guess if self.refusal == "guessed" else 0.0
        return averaged(scored, values, [{"score": value} for value in values])


def right_choice(right: AnswerScores, wrong: Sequence[AnswerScores]) -> float:
    """1 if the right choice has the highest log-likelihood (its tokens' sum), 1/k if k choices share it, else 0.

    NaN where a choice could not be scored.
    """
    losses = [choice.n * choice.nll for choice in (right, *wrong)]
    if any(map(math.isnan, losses)):
        return math.nan
    return 1 / losses.count(losses[0]) if losses[0] == min(losses) else 0.0


def at_chance(accuracy: float, n: int, chance: float) -> bool:
    """Whether an accuracy over n questions is what guessing gives, or less; chance: its share of right answers."""
    return accuracy <= chance + ABOVE * math.sqrt(chance * (1 - chance) / n)
