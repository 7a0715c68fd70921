"""PDU, primal-dual unlearning: flatten the forgotten logits as far as a bound on the retained loss allows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal, Self

from torch import Tensor

from d2unlearn.methods.base import NOT_NEGATIVE, AdaptiveMethod, ConventionName, Needs, NotNegative
from d2unlearn.methods.forget_retain import RetainLoss, answer_positions, retain_loss, retain_needs
from d2unlearn.observation import Observed
from d2unlearn.quantities import MaxLogit, MeanLogit
from d2unlearn.schema import Role


@dataclass(frozen=True, kw_only=True)
class PDU(AdaptiveMethod):
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

    gamma: NotNegative = 1.0
    alpha: NotNegative = 1.0
    retain_loss_type: RetainLoss = "NLL"
    convention: ConventionName = "d2unlearn"
    retain_loss_eps: NotNegative = 0.3
    primal_dual: bool = True
    dual_step_size: NotNegative = 1.0
    dual_update_upon: Literal["step", "epoch"] = "step"
    dual_warmup_epochs: Annotated[int, NOT_NEGATIVE] = 5

    @property
    def needs(self) -> Mapping[Role, Needs]:
        forget = Needs(policy=(MaxLogit(), MeanLogit()), positions=answer_positions(self.convention))
        return {"forget": forget, "retain": retain_needs(self.retain_loss_type, self.convention)}

    def loss(self, batch: Mapping[Role, Observed]) -> Tensor:
        terms = self.monitor(batch)
        share = len(batch["retain"].rows) / max(batch["retain"].total_positions, 1.0)
        return self.gamma * terms["forget_loss"] + self.alpha * (terms["retain_loss"] - self.retain_loss_eps * share)

    def monitor(self, batch: Mapping[Role, Observed]) -> Mapping[str, Tensor]:
        """Both means without their weights."""
        forget = batch["forget"]
        flatness = forget.mean((forget.policy[MaxLogit()] - forget.policy[MeanLogit()]) ** 2)
        return {"forget_loss": flatness, "retain_loss": retain_loss(self.retain_loss_type, batch["retain"])}

    def after_step(self, means: Mapping[str, float], epochs_done: int) -> Self:
        return self._updated(means, epochs_done) if self.dual_update_upon == "step" else self

    def after_epoch(self, means: Mapping[str, float], epochs_done: int) -> Self:
        return self._updated(means, epochs_done) if self.dual_update_upon == "epoch" else self

    def _updated(self, means: Mapping[str, float], epochs_done: int) -> Self:
        if not self.primal_dual or epochs_done < self.dual_warmup_epochs:
            return self
        excess = means["retain_loss"] - self.retain_loss_eps
        return replace(self, alpha=max(0.0, self.alpha + self.dual_step_size * excess))
