"""SimNPO: NPO without a reference, on the likelihood per token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from d2unlearn.methods.base import ConventionName, NotNegative, Positive
from d2unlearn.methods.forget_retain import FORGET_LIKELIHOOD, ForgetRetain, RetainLoss
from d2unlearn.observation import Observed
from d2unlearn.quantities import Nll
from d2unlearn.schema import Role


@dataclass(frozen=True, kw_only=True)
class SimNPO(ForgetRetain):
    """L_forget = -(2 / beta) mean_rows log sigmoid( beta (l / |y| - delta) ), with l / |y| the mean NLL of a row's answer.

    Parameters (defaults: beta 4.5, delta 0, gamma 0.125, alpha 1, NLL)
        beta    how soon the gradient fades
        delta   NLL per token, nats, at which it has faded by half
        those of `ForgetRetain`

    Source: Fan et al. 2024, arXiv 2410.07163; open-unlearning, src/trainer/unlearn/simnpo.py.
    """

    gamma: NotNegative = 0.125
    alpha: NotNegative = 1.0
    retain_loss_type: RetainLoss = "NLL"
    convention: ConventionName = "d2unlearn"
    beta: Positive = 4.5
    delta: float = 0.0
    forget_needs = FORGET_LIKELIHOOD

    def forget_loss(self, batch: Mapping[Role, Observed]) -> Tensor:
        forget = batch["forget"]
        above = forget.mean_by_row(forget.policy[Nll()]) - self.delta
        return -2 / self.beta * forget.mean_rows(logsigmoid(self.beta * above))
