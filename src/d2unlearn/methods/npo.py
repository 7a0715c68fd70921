"""NPO, negative preference optimisation: ascent that weakens as an answer becomes unlikely."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from d2unlearn.methods.base import ConventionName, Needs, NotNegative, Positive
from d2unlearn.methods.forget_retain import ForgetRetain, RetainLoss
from d2unlearn.observation import Observed
from d2unlearn.quantities import Nll
from d2unlearn.schema import Role


@dataclass(frozen=True, kw_only=True)
class NPO(ForgetRetain):
    """L_forget = -(2 / beta) mean_rows log sigmoid( beta (l - l_ref) ), with l the summed NLL of a row's answer.

    The gradient of a row is that of gradient ascent, times 2 sigmoid(-beta (l - l_ref)): it fades once the row is forgotten.

    Parameters (defaults: beta 0.1, gamma 1, alpha 1, NLL)
        beta   how soon the gradient fades
        those of `ForgetRetain`

    Source: Zhang et al. 2024, arXiv 2404.05868; open-unlearning, src/trainer/unlearn/npo.py.
    """

    gamma: NotNegative = 1.0
    alpha: NotNegative = 1.0
    retain_loss_type: RetainLoss = "NLL"
    convention: ConventionName = "d2unlearn"
    beta: Positive = 0.1

    @property
    def forget_needs(self) -> Mapping[Role, Needs]:
        return {"forget": Needs(policy=(Nll(),), reference=(Nll(),))}

    def forget_loss(self, batch: Mapping[Role, Observed]) -> Tensor:
        forget = batch["forget"]
        risen = forget.sum_by_row(forget.policy[Nll()] - forget.reference[Nll()])
        return -2 / self.beta * forget.mean_rows(logsigmoid(self.beta * risen))
