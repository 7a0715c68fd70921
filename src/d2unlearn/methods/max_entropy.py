"""ME+GD: make the model as unsure as it can be of the forgotten answers, and keep the retained ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from d2unlearn.methods.base import ConventionName, Needs, NotNegative
from d2unlearn.methods.forget_retain import ForgetRetain, RetainLoss
from d2unlearn.observation import Observed
from d2unlearn.quantities import KlFromUniform
from d2unlearn.schema import Role


@dataclass(frozen=True, kw_only=True)
class MaxEntropy(ForgetRetain):
    """L_forget = mean KL(uniform || softmax(z)) over answer positions.

    Parameters (defaults: gamma 0.1, alpha 1, NLL)
        those of `ForgetRetain`; open-unlearning has no such method, so its convention touches the retain term alone

    Source: Yuan et al. 2024, arXiv 2410.08109 (their code also counts the prompt's positions by default).
    """

    gamma: NotNegative = 0.1
    alpha: NotNegative = 1.0
    retain_loss_type: RetainLoss = "NLL"
    convention: ConventionName = "d2unlearn"

    @property
    def forget_needs(self) -> Mapping[Role, Needs]:
        return {"forget": Needs(policy=(KlFromUniform(),))}

    def forget_loss(self, batch: Mapping[Role, Observed]) -> Tensor:
        forget = batch["forget"]
        return forget.mean(forget.policy[KlFromUniform()])
