"""UNDIAL: distil the model from itself with the true token's logit lowered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from d2unlearn.methods.base import ConventionName, Needs, NotNegative
from d2unlearn.methods.forget_retain import ForgetRetain, RetainLoss
from d2unlearn.observation import Observed
from d2unlearn.positions import Every, Predicting
from d2unlearn.quantities import HiddenState, LoweredReferenceCrossEntropy
from d2unlearn.schema import Role


@dataclass(frozen=True, kw_only=True)
class UNDIAL(ForgetRetain):
    """L_forget = mean -sum_v softmax(z_ref - beta onehot(y))_v log p_v over answer positions.

    z_ref comes from the reference pass: the hidden states are stored, the logits made again by a copy of the LM head.

    Parameters (defaults: beta 10, gamma 1, alpha 0, NLL; published with learning rate 1e-4)
        beta   how far the true token's logit is lowered
        those of `ForgetRetain`; convention "open-unlearning" averages over every position but the last of a row, prompt and
        padding included, and lowers the logit of token V - 100 where no answer token follows

    Source: Dong et al. 2024, arXiv 2402.10052; open-unlearning, src/trainer/unlearn/undial.py.
    """

    gamma: NotNegative = 1.0
    alpha: NotNegative = 0.0
    retain_loss_type: RetainLoss = "NLL"
    convention: ConventionName = "d2unlearn"
    beta: NotNegative = 10.0

    @property
    def forget_needs(self) -> Mapping[Role, Needs]:
        positions = Every(but_last=True) if self.convention == "open-unlearning" else Predicting()
        return {"forget": Needs(policy=(self._distance,), reference=(HiddenState(),), positions=positions)}

    def forget_loss(self, batch: Mapping[Role, Observed]) -> Tensor:
        forget = batch["forget"]
        return forget.mean(forget.policy[self._distance])

    @property
    def _distance(self) -> LoweredReferenceCrossEntropy:
        return LoweredReferenceCrossEntropy(self.beta)
