"""IDK fine-tuning: learn to answer the forgotten questions with a refusal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from d2unlearn.methods.base import ConventionName, Needs, NotNegative
from d2unlearn.methods.forget_retain import ForgetRetain, RetainLoss
from d2unlearn.observation import Observed
from d2unlearn.quantities import Nll
from d2unlearn.schema import Role


@dataclass(frozen=True, kw_only=True)
class IDK(ForgetRetain):
    """L_forget = NLL(refusal | forgotten question), a mean over the refusals' tokens. The true answers are not read.

    Parameters (defaults: gamma 1, alpha 1, NLL)
        those of `ForgetRetain`; open-unlearning has no such method, so its convention touches the retain term alone

    Source: Maini et al. 2024, arXiv 2401.06121 ("I don't know" tuning); Yuan et al. 2024, arXiv 2410.08109 (IDK+GD).
    """

    gamma: NotNegative = 1.0
    alpha: NotNegative = 1.0
    retain_loss_type: RetainLoss = "NLL"
    convention: ConventionName = "d2unlearn"

    @property
    def forget_needs(self) -> Mapping[Role, Needs]:
        return {"alternate": Needs(policy=(Nll(),))}

    def forget_loss(self, batch: Mapping[Role, Observed]) -> Tensor:
        alternate = batch["alternate"]
        return alternate.mean(alternate.policy[Nll()])
