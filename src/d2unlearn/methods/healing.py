"""Healing: back to what the original does on retained rows, with EUA's bounds held, after weights were changed by force."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated

from torch import Tensor, nn

from d2unlearn.layers import layer_names
from d2unlearn.methods.base import FINITE, INSIDE_UNIT, Method, Needs, NotNegative
from d2unlearn.methods.eua import EUA
from d2unlearn.observation import Observed
from d2unlearn.quantities import HiddenState, KlFromReference, Nll
from d2unlearn.schema import Role


@dataclass(frozen=True)
class Healing(Method):
    """L = KL(original || model) + hidden sum_l |h_l - h0_l|^2 / |h0_l|^2 / layers + gamma (EUA's two hinges)

    The first two terms and the lower hinge over the retained rows' positions, the upper hinge over the forget rows'. h_l is the
    output of decoder layer l; |.|^2 are sums over all positions of the batch.

    Parameters
        hidden               weight of the hidden states
        gamma                weight of the hinges
        ratio, temperature   of the margins, as in `EUA`
        likelihood           NLL of the retained answers in the KL's place
        layers               names of the decoder's layers; filled in for a model

    Source: the distillation that heals UNDO, 2506.06278, with hidden states as in FitNets, 1412.6550.
    """

    hidden: NotNegative = 3.0
    gamma: NotNegative = 0.05
    ratio: Annotated[float, INSIDE_UNIT] = 0.1
    temperature: Annotated[float, FINITE] = 1.0
    likelihood: bool = False
    layers: tuple[str, ...] = ()

    def for_model(self, model: nn.Module) -> Healing:
        return replace(self, layers=tuple(layer_names(model)))

    @property
    def needs(self) -> Mapping[Role, Needs]:
        bounds = self._bounds.needs
        forget, retain = bounds["forget"], bounds["retain"]
        states = tuple(HiddenState(layer) for layer in self.layers)
        return {
            "forget": Needs(forget.policy, forget.reference),
            "retain": Needs(
                (*retain.policy, *([] if self.likelihood else [KlFromReference()]), *states),
                (*retain.reference, HiddenState(), *states),
            ),
        }

    def loss(self, batch: Mapping[Role, Observed]) -> Tensor:
        retain = batch["retain"]
        kept = retain.mean(retain.policy[Nll() if self.likelihood else KlFromReference()]) + self.hidden * self.hidden_distance(
            retain
        )
        return kept + self._bounds.loss(batch)

    def hidden_distance(self, retain: Observed) -> Tensor:
        """Mean over the layers of |h - h0|^2 / |h0|^2, each a sum over the positions; 0 without layers or positions."""
        total = retain.policy[Nll()].new_zeros(())
        for layer in self.layers:
            ours, theirs = retain.policy[HiddenState(layer)].float(), retain.reference[HiddenState(layer)].float()
            total = total + (ours - theirs).square().sum() / theirs.square().sum().clamp(min=1e-12)
        return total / max(len(self.layers), 1)

    @property
    def _bounds(self) -> EUA:
        return EUA(ratio=self.ratio, temperature=self.temperature, gamma=self.gamma, alpha=0.0)
