"""SatImp: ascent weighted by how well a token is known (saturation) and how much there is left to learn of it (importance)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from d2unlearn.methods.base import ConventionName, NotNegative
from d2unlearn.methods.forget_retain import FORGET_LIKELIHOOD, ForgetRetain, RetainLoss
from d2unlearn.observation import Observed
from d2unlearn.quantities import Nll
from d2unlearn.schema import Role


@dataclass(frozen=True, kw_only=True)
class SatImp(ForgetRetain):
    """L_forget = -mean p^beta1 (1 - p)^beta2 NLL over answer positions, p, the target's probability, constant to the gradient.

    Parameters (defaults: beta1 5, beta2 1, gamma 0.1, alpha 1, NLL)
        beta1   weight of what is known
        beta2   weight of what is not known for certain
        those of `ForgetRetain`

    Source: Yang et al. 2025, arXiv 2505.11953; open-unlearning, src/trainer/unlearn/satimp.py.
    """

    gamma: NotNegative = 0.1
    alpha: NotNegative = 1.0
    retain_loss_type: RetainLoss = "NLL"
    convention: ConventionName = "d2unlearn"
    beta1: NotNegative = 5.0
    beta2: NotNegative = 1.0
    forget_needs = FORGET_LIKELIHOOD

    def forget_loss(self, batch: Mapping[Role, Observed]) -> Tensor:
        forget = batch["forget"]
        nll = forget.policy[Nll()]
        p = (-nll.detach()).exp()
        return -forget.mean(p**self.beta1 * (1 - p) ** self.beta2 * nll)
