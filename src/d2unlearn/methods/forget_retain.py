"""What most methods share: a forget term, a retain term, and which convention their values follow."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from d2unlearn.methods.base import Method, Needs, check_parameters
from d2unlearn.observation import Observed
from d2unlearn.positions import Every, Predicting
from d2unlearn.quantities import HiddenState, KlFromReference, Nll
from d2unlearn.schema import Role

Convention = Literal["d2unlearn", "open-unlearning"]
"""Whose values a loss has where the two differ. docs/methods.md says what the differences are and measures them."""
RetainLoss = Literal["NLL", "KL"]


@dataclass(frozen=True, kw_only=True)
class ForgetRetain(Method):
    """L = gamma * L_forget + alpha * L_retain, with L_forget the subclass's own.

        L_retain = NLL                              `retain_loss_type` NLL
                 = KL(softmax(z_ref) || softmax(z)) `retain_loss_type` KL; z_ref from the reference pass

    each a mean over the retained answer positions of the effective batch. With alpha = 0 no retained row is read.

    Parameters
        gamma             weight of the forget term
        alpha             weight of the retain term
        retain_loss_type  NLL or KL
        convention        "open-unlearning" averages KL over every position of the batch, prompt and padding included

    Source: open-unlearning, src/trainer/unlearn/grad_diff.py.
    """

    gamma: float = 1.0
    alpha: float = 1.0
    retain_loss_type: RetainLoss = "NLL"
    convention: Convention = "d2unlearn"

    def __post_init__(self) -> None:
        check_parameters(self, not_negative=("gamma", "alpha"))

    @property
    @abstractmethod
    def forget_needs(self) -> Mapping[Role, Needs]:
        """What the forget term reads."""

    @abstractmethod
    def forget_loss(self, batch: Mapping[Role, Observed]) -> Tensor:
        """The forget term without its weight, a scalar."""

    @property
    def retain_needs(self) -> Mapping[Role, Needs]:
        """What the retain term reads."""
        if self.retain_loss_type == "NLL":
            return {"retain": Needs(policy=(Nll(),))}
        places = Every() if self.as_published else Predicting()
        return {"retain": Needs(policy=(KlFromReference(),), reference=(HiddenState(),), positions=places)}

    def retain_loss(self, batch: Mapping[Role, Observed]) -> Tensor:
        """The retain term without its weight, a scalar."""
        retain = batch["retain"]
        return retain.mean(retain.policy[Nll() if self.retain_loss_type == "NLL" else KlFromReference()])

    @property
    def needs(self) -> Mapping[Role, Needs]:
        return {**self.forget_needs, **(self.retain_needs if self.reads_retain else {})}

    def loss(self, batch: Mapping[Role, Observed]) -> Tensor:
        forget = self.gamma * self.forget_loss(batch)
        return forget + self.alpha * self.retain_loss(batch) if self.reads_retain else forget

    def monitor(self, batch: Mapping[Role, Observed]) -> Mapping[str, Tensor]:
        """Both terms without their weights."""
        terms = {"forget_loss": self.forget_loss(batch)}
        return {**terms, "retain_loss": self.retain_loss(batch)} if self.reads_retain else terms

    @property
    def reads_retain(self) -> bool:
        """Whether there is a retain term."""
        return self.alpha > 0

    @property
    def as_published(self) -> bool:
        """Whether open-unlearning's values are wanted, its mistakes included."""
        return self.convention == "open-unlearning"
