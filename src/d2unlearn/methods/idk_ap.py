"""IDK+AP: refuse the forgotten questions, and prefer answering to refusing on the retained ones (answer preservation)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from d2unlearn.methods.base import ConventionName, Method, Needs, NotNegative, Positive
from d2unlearn.observation import Observed
from d2unlearn.quantities import Nll
from d2unlearn.schema import Role


@dataclass(frozen=True, kw_only=True)
class IDKAP(Method):
    """L = gamma NLL(refusal | forgotten question) + alpha AP.

        AP = -(1 / beta) mean_rows log sigmoid( beta (l(refusal | retained question) - l(answer | retained question)) )

    with l the summed NLL of the answer. No reference is needed.

    Parameters (defaults: beta 0.1, gamma 1, alpha 1)
        beta         how soon a retained row counts as preserved
        gamma        weight of the refusals
        alpha        weight of answer preservation
        convention   makes no difference here

    Source: Yuan et al. 2024, arXiv 2410.08109.
    """

    beta: Positive = 0.1
    gamma: NotNegative = 1.0
    alpha: NotNegative = 1.0
    convention: ConventionName = "d2unlearn"

    @property
    def needs(self) -> Mapping[Role, Needs]:
        likelihood = Needs(policy=(Nll(),))
        return {"alternate": likelihood, "retain": likelihood, "retain_alternate": likelihood}

    def loss(self, batch: Mapping[Role, Observed]) -> Tensor:
        return self.gamma * self.refusal_loss(batch) + self.alpha * self.preservation_loss(batch)

    def monitor(self, batch: Mapping[Role, Observed]) -> Mapping[str, Tensor]:
        """Both terms without their weights."""
        return {"forget_loss": self.refusal_loss(batch), "retain_loss": self.preservation_loss(batch)}

    def refusal_loss(self, batch: Mapping[Role, Observed]) -> Tensor:
        """NLL of the refusals, a mean over their tokens."""
        alternate = batch["alternate"]
        return alternate.mean(alternate.policy[Nll()])

    def preservation_loss(self, batch: Mapping[Role, Observed]) -> Tensor:
        """AP, a mean over the retained rows."""
        answer, refusal = batch["retain"], batch["retain_alternate"]
        preferred = refusal.sum_by_row(refusal.policy[Nll()]) - answer.sum_by_row(answer.policy[Nll()])
        return -1 / self.beta * answer.mean_rows(logsigmoid(self.beta * preferred))
