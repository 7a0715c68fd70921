"""WGA, weighted gradient ascent: tokens that are still known weigh most."""

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
class WGA(ForgetRetain):
    """L_forget = -mean p^beta NLL over answer positions, with p the target's probability, a constant to the gradient.

    Parameters (defaults: beta 1, gamma 1, alpha 1, NLL)
        beta   how much likelier tokens weigh more; 0 is gradient difference
        those of `ForgetRetain`

    Source: Wang et al. 2025, arXiv 2502.19301; open-unlearning, src/trainer/unlearn/wga.py.
    """

    gamma: NotNegative = 1.0
    alpha: NotNegative = 1.0
    retain_loss_type: RetainLoss = "NLL"
    convention: ConventionName = "d2unlearn"
    beta: NotNegative = 1.0
    forget_needs = FORGET_LIKELIHOOD

    def forget_loss(self, batch: Mapping[Role, Observed]) -> Tensor:
        forget = batch["forget"]
        nll = forget.policy[Nll()]
        return -forget.mean((-self.beta * nll.detach()).exp() * nll)
