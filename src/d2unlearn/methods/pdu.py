"""PDU, primal-dual unlearning: flatten the forgotten logits as far as a bound on the retained loss allows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, Self

from torch import Tensor

from d2unlearn.methods.base import AdaptiveMethod, Needs, check_parameters
from d2unlearn.methods.forget_retain import ForgetRetain
from d2unlearn.observation import Observed
from d2unlearn.positions import Labelled, Predicting
from d2unlearn.quantities import MaxLogit, MeanLogit
from d2unlearn.schema import Role


@dataclass(frozen=True, kw_only=True)
class PDU(ForgetRetain, AdaptiveMethod):
    """L = gamma mean (max z - mean z)^2 + alpha (L_retain - eps), the first mean over forgotten answer positions.

    alpha is the dual variable of the constraint L_retain <= eps. After each step or epoch beyond the warm-up

        alpha <- max(0, alpha + dual_step_size (L_retain - eps))

    with L_retain the mean over that step's effective batch, or over the epoch's steps.

    Parameters (defaults: gamma 1, alpha 1, NLL, eps 0.3, dual step 1 upon each step after 5 epochs)
        retain_loss_eps      the bound, nats: choose it above the loss that the model starts with
        primal_dual          off: alpha stays as it is
        dual_step_size       how fast alpha follows
        dual_update_upon     step or epoch
        dual_warmup_epochs   epochs before the first update
        those of `ForgetRetain`, alpha being the first value; convention "open-unlearning" looks at the answer tokens' own
        positions instead of those that predict them

    Source: Entesari et al. 2025, arXiv 2506.05314 (eps 0.3 for TOFU); open-unlearning, src/trainer/unlearn/pdu.py.
    """

    retain_loss_eps: float = 0.3
    primal_dual: bool = True
    dual_step_size: float = 1.0
    dual_update_upon: Literal["step", "epoch"] = "step"
    dual_warmup_epochs: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_parameters(self, not_negative=("retain_loss_eps", "dual_step_size", "dual_warmup_epochs"))

    @property
    def forget_needs(self) -> Mapping[Role, Needs]:
        return {"forget": Needs(policy=(MaxLogit(), MeanLogit()), positions=Labelled() if self.as_published else Predicting())}

    def forget_loss(self, batch: Mapping[Role, Observed]) -> Tensor:
        forget = batch["forget"]
        return forget.mean((forget.policy[MaxLogit()] - forget.policy[MeanLogit()]) ** 2)

    def loss(self, batch: Mapping[Role, Observed]) -> Tensor:
        retain = batch["retain"]
        share = retain.mean(retain.rows.new_ones(len(retain.rows)))
        return super().loss(batch) - self.alpha * self.retain_loss_eps * share

    @property
    def reads_retain(self) -> bool:
        return True

    def after_step(self, means: Mapping[str, float], epochs_done: int) -> Self:
        return self._updated(means, epochs_done) if self.dual_update_upon == "step" else self

    def after_epoch(self, means: Mapping[str, float], epochs_done: int) -> Self:
        return self._updated(means, epochs_done) if self.dual_update_upon == "epoch" else self

    def _updated(self, means: Mapping[str, float], epochs_done: int) -> Self:
        if not self.primal_dual or epochs_done < self.dual_warmup_epochs:
            return self
        excess = means["retain_loss"] - self.retain_loss_eps
        return replace(self, alpha=max(0.0, self.alpha + self.dual_step_size * excess))
