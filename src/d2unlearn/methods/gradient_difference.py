"""Gradient difference: ascent on the forgotten answers, descent on the retained ones."""

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
class GradientDifference(ForgetRetain):
    """L_forget = -NLL(forget), a mean over answer positions; the rest as in `ForgetRetain`.

    Parameters (defaults: gamma 1, alpha 1, NLL)
        those of `ForgetRetain`

    Source: Liu et al. 2022, arXiv 2203.12817; open-unlearning, src/trainer/unlearn/grad_diff.py.
    """

    gamma: NotNegative = 1.0
    alpha: NotNegative = 1.0
    retain_loss_type: RetainLoss = "NLL"
    convention: ConventionName = "d2unlearn"
    forget_needs = FORGET_LIKELIHOOD

    def forget_loss(self, batch: Mapping[Role, Observed]) -> Tensor:
        forget = batch["forget"]
        return -forget.mean(forget.policy[Nll()])
