"""IDK-DPO: prefer a refusal to the true answer, in proportion to what the reference thought of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from d2unlearn.methods.base import Needs, check_parameters
from d2unlearn.methods.forget_retain import ForgetRetain
from d2unlearn.observation import Observed
from d2unlearn.quantities import Nll
from d2unlearn.schema import Role


@dataclass(frozen=True, kw_only=True)
class DPO(ForgetRetain):
    """L_forget = -(2 / beta) mean_rows log sigmoid( beta ((l - l_ref)(answer) - (l - l_ref)(alternate)) ).

    l is the summed NLL of an answer to the forgotten question, l_ref the reference's; the alternate answer is a refusal.

    Parameters (defaults: beta 0.1, gamma 1, alpha 1, NLL)
        beta   how soon the gradient fades
        those of `ForgetRetain`

    Source: Rafailov et al. 2023, arXiv 2305.18290; open-unlearning, src/trainer/unlearn/dpo.py.
    """

    beta: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_parameters(self, positive=("beta",))

    @property
    def forget_needs(self) -> Mapping[Role, Needs]:
        likelihood = Needs(policy=(Nll(),), reference=(Nll(),))
        return {"forget": likelihood, "alternate": likelihood}

    def forget_loss(self, batch: Mapping[Role, Observed]) -> Tensor:
        preferred = _risen(batch["forget"]) - _risen(batch["alternate"])
        return -2 / self.beta * batch["forget"].mean_rows(logsigmoid(self.beta * preferred))


def _risen(seen: Observed) -> Tensor:
    """How much less likely each row's answer is than it was to the reference, nats, [B]."""
    return seen.sum_by_row(seen.policy[Nll()] - seen.reference[Nll()])
