"""IDK-DPO: prefer a refusal to the true answer, in proportion to what the reference thought of both."""

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

_LIKELIHOOD = Needs(policy=(Nll(),), reference=(Nll(),))
PREFERENCE_NEEDS: Mapping[Role, Needs] = {"forget": _LIKELIHOOD, "alternate": _LIKELIHOOD}
"""What `preference_loss` reads."""


@dataclass(frozen=True, kw_only=True)
class DPO(ForgetRetain):
    """L_forget = -(2 / beta) mean_rows log sigmoid( beta ((l - l_ref)(answer) - (l - l_ref)(alternate)) ).

    l is the summed NLL of an answer to the forgotten question, l_ref the reference's; the alternate answer is a refusal.

    Parameters (defaults: beta 0.1, gamma 1, alpha 1, NLL)
        beta   how soon the gradient fades
        those of `ForgetRetain`

    Source: Rafailov et al. 2023, arXiv 2305.18290; open-unlearning, src/trainer/unlearn/dpo.py.
    """

    gamma: NotNegative = 1.0
    alpha: NotNegative = 1.0
    retain_loss_type: RetainLoss = "NLL"
    convention: ConventionName = "d2unlearn"
    beta: Positive = 0.1
    forget_needs = PREFERENCE_NEEDS

    def forget_loss(self, batch: Mapping[Role, Observed]) -> Tensor:
        return preference_loss(batch, self.beta)


def preference_loss(batch: Mapping[Role, Observed], beta: float) -> Tensor:
    """L_forget of `DPO`, a scalar."""
    preferred = _risen(batch["forget"]) - _risen(batch["alternate"])
    return -2 / beta * batch["forget"].mean_rows(logsigmoid(beta * preferred))


def _risen(seen: Observed) -> Tensor:
    """How much less likely each row's answer is than it was to the reference, nats, [B]."""
    return seen.sum_by_row(seen.policy[Nll()] - seen.reference[Nll()])
