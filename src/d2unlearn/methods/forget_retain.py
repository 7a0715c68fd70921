"""What most methods share: a forget term and a retain term, each with its weight."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from d2unlearn.methods.base import ConventionName, Method, Needs
from d2unlearn.observation import Observed
from d2unlearn.positions import Every, Labelled, Predicting
from d2unlearn.quantities import HiddenState, KlFromReference, Nll
from d2unlearn.schema import Role

RetainLoss = Literal["NLL", "KL"]
FORGET_LIKELIHOOD: Mapping[Role, Needs] = {"forget": Needs(policy=(Nll(),))}
"""What a forget term reads that is made of the forgotten answers' likelihood."""


class TwoTerms(Method):
    """L = gamma * L_forget + alpha * L_retain. With alpha = 0 no retained row is read."""

    gamma: float
    alpha: float

    @property
    @abstractmethod
    def forget_needs(self) -> Mapping[Role, Needs]:
        """What the forget term reads. Where it depends on no parameter, a subclass sets it in one line."""

    @abstractmethod
    def forget_loss(self, batch: Mapping[Role, Observed]) -> Tensor:
        """The forget term without its weight, a scalar."""

    @property
    @abstractmethod
    def retain_needs(self) -> Needs:
        """What the retain term reads of the retained rows."""

    @abstractmethod
    def retain_loss(self, retain: Observed) -> Tensor:
        """The retain term without its weight, a scalar."""

    @property
    def needs(self) -> Mapping[Role, Needs]:
        return {**self.forget_needs, "retain": self.retain_needs} if self.alpha > 0 else self.forget_needs

    def loss(self, batch: Mapping[Role, Observed]) -> Tensor:
        forget = self.gamma * self.forget_loss(batch)
        return forget + self.alpha * self.retain_loss(batch["retain"]) if self.alpha > 0 else forget

    def monitor(self, batch: Mapping[Role, Observed]) -> Mapping[str, Tensor]:
        """Both terms without their weights."""
        terms = {"forget_loss": self.forget_loss(batch)}
        return {**terms, "retain_loss": self.retain_loss(batch["retain"])} if self.alpha > 0 else terms


class ForgetRetain(TwoTerms):
    """`TwoTerms` whose second keeps the retained answers likely, or the retained distributions as they were.

        L_retain = NLL                              `retain_loss_type` NLL
                 = KL(softmax(z_ref) || softmax(z)) `retain_loss_type` KL; z_ref from the reference pass

    each a mean over the retained answer positions of the effective batch.

    Parameters
        gamma             weight of the forget term
        alpha             weight of the retain term
        retain_loss_type  NLL or KL
        convention        "open-unlearning" averages KL over every position of the batch, prompt and padding included

    Source: open-unlearning, src/trainer/unlearn/grad_diff.py.
    """

    retain_loss_type: RetainLoss
    convention: ConventionName

    @property
    def retain_needs(self) -> Needs:
        return retain_needs(self.retain_loss_type, self.convention)

    def retain_loss(self, retain: Observed) -> Tensor:
        return retain_loss(self.retain_loss_type, retain)


def retain_needs(kind: RetainLoss, convention: ConventionName) -> Needs:
    """What the retain term of `ForgetRetain` reads of the retained rows."""
    if kind == "NLL":
        return Needs(policy=(Nll(),))
    positions = Every() if convention == "open-unlearning" else Predicting()
    return Needs(policy=(KlFromReference(),), reference=(HiddenState(),), positions=positions)


def retain_loss(kind: RetainLoss, retain: Observed) -> Tensor:
    """The retain term of `ForgetRetain` without its weight, a scalar."""
    return retain.mean(retain.policy[Nll() if kind == "NLL" else KlFromReference()])


def answer_positions(convention: ConventionName) -> Labelled | Predicting:
    """Those that predict the answer; the answer tokens' own, one to the right, where open-unlearning takes these."""
    return Labelled() if convention == "open-unlearning" else Predicting()
