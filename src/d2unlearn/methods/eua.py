"""EUA, Energy-based Unlearning Alignment: forget content above an energy bound, retained content below one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from d2unlearn.methods.base import FINITE, INSIDE_UNIT, Method, Needs, NotNegative
from d2unlearn.observation import Observed
from d2unlearn.quantities import BottomLogSumExp, LogSumExp, Nll, TopLogSumExp
from d2unlearn.schema import Role


@dataclass(frozen=True)
class EUA(Method):
    """Push forget positions above `m_out`, keep retained ones below `m_in`, and keep the retained likelihood.

        E      = free_energy(z, T) / T = -logsumexp(z / T)
        L      = gamma * [ mean_retain relu(E - m_in)^2 + mean_forget relu(m_out - E)^2 ] + alpha * NLL(retain)

    Means run over answer positions of the effective batch. The margins are the frozen reference's (see `d2unlearn.energy`).

    Parameters (defaults: the published ones, for billion-parameter models at learning rate 1e-5)
        ratio        share of the reference's logits that its margins keep
        temperature  T
        gamma        weight of the energy terms
        alpha        weight of the retained likelihood

    Source: D2, arXiv 2605.16776; reference code at commit 67cc8f5 (its beta1 = ratio, beta2 = temperature).
    """

    ratio: Annotated[float, INSIDE_UNIT] = 0.1
    temperature: Annotated[float, FINITE] = 1.0
    gamma: NotNegative = 0.05
    alpha: NotNegative = 1.0

    @property
    def needs(self) -> Mapping[Role, Needs]:
        energy = LogSumExp(self.temperature)
        return {
            "forget": Needs(policy=(energy,), reference=(self._bottom,)),
            "retain": Needs(policy=(energy, Nll()), reference=(self._top,)),
        }

    def loss(self, batch: Mapping[Role, Observed]) -> Tensor:
        forget, retain = batch["forget"], batch["retain"]
        hinges = retain.mean(self.retain_hinge(retain) ** 2) + forget.mean(self.forget_hinge(forget) ** 2)
        return self.gamma * hinges + self.alpha * retain.mean(retain.policy[Nll()])

    def monitor(self, batch: Mapping[Role, Observed]) -> Mapping[str, Tensor]:
        """Share of active hinges on each side, and the retained NLL."""
        forget, retain = batch["forget"], batch["retain"]
        return {
            "forget_hinge_active": forget.mean((self.forget_hinge(forget) > 0).float()),
            "retain_hinge_active": retain.mean((self.retain_hinge(retain) > 0).float()),
            "retain_nll": retain.mean(retain.policy[Nll()]),
        }

    def retain_hinge(self, retain: Observed) -> Tensor:
        """relu(E - m_in) at each retained position, [N]: how far it has drifted above its bound, in units of T."""
        return (-retain.policy[LogSumExp(self.temperature)] + retain.reference[self._top]).relu()

    def forget_hinge(self, forget: Observed) -> Tensor:
        """relu(m_out - E) at each forget position, [N]: how far it still lies below its bound, in units of T."""
        return (-forget.reference[self._bottom] + forget.policy[LogSumExp(self.temperature)]).relu()

    @property
    def _top(self) -> TopLogSumExp:
        return TopLogSumExp(self.ratio, self.temperature)

    @property
    def _bottom(self) -> BottomLogSumExp:
        return BottomLogSumExp(self.ratio, self.temperature)
