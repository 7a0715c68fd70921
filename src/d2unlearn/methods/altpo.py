"""AltPO: prefer another answer, one that the model itself wrote before training, to the true one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from d2unlearn.methods.base import POSITIVE, ConventionName, NotNegative, Positive, SelfWritten
from d2unlearn.methods.dpo import PREFERENCE_NEEDS, preference_loss
from d2unlearn.methods.forget_retain import ForgetRetain, RetainLoss
from d2unlearn.observation import Observed
from d2unlearn.schema import Role


@dataclass(frozen=True, kw_only=True)
class AltPO(ForgetRetain):
    """The loss of `DPO`, with alternate answers in place of refusals.

    Parameters (defaults: those of `DPO`; 4 samples at temperature 1.5, no instruction)
        those of `DPO`
        alternate_samples       so many answers are drawn for each question; the one least like the true answer is kept
        alternate_temperature   temperature they are drawn at
        alternate_instruction   for models that follow instructions: what they are told, with {question} and {answer}

    Source: Mekala et al. 2024, arXiv 2409.13474 (five answers a question, written by instruction).
    """

    gamma: NotNegative = 1.0
    alpha: NotNegative = 1.0
    retain_loss_type: RetainLoss = "NLL"
    convention: ConventionName = "d2unlearn"
    beta: Positive = 0.1
    alternate_samples: Annotated[int, POSITIVE] = 4
    alternate_temperature: Positive = 1.5
    alternate_instruction: str | None = None
    forget_needs = PREFERENCE_NEEDS

    def forget_loss(self, batch: Mapping[Role, Observed]) -> Tensor:
        return preference_loss(batch, self.beta)

    @property
    def self_written(self) -> SelfWritten:
        return SelfWritten(self.alternate_samples, self.alternate_temperature, self.alternate_instruction)
