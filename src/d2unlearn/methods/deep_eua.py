"""Deep EUA: EUA, then rounds that undo what relearning finds, along directions that retained rows do not need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor

from d2unlearn.methods.base import (
    FINITE,
    INSIDE_UNIT,
    NOT_NEGATIVE,
    POSITIVE,
    AttackInLoop,
    Deepening,
    Hardening,
    Method,
    MinorStep,
    Needs,
    NotNegative,
)
from d2unlearn.methods.eua import EUA
from d2unlearn.methods.healing import Healing
from d2unlearn.observation import Observed
from d2unlearn.quantities import Nll
from d2unlearn.schema import Role

_CERTAIN = 1e-6
"""Nats below which a token counts as no surer."""


@dataclass(frozen=True)
class LogOdds(Method):
    """L = mean_forget relu(log p / (1 - p) - floor): how surely the forgotten tokens are known, whatever was done to hide it.

    Its gradient weighs every token above the floor alike. That of the likelihood is largest at tokens that are not known, and
    vanishes where one is known by heart.

    Parameters
        floor   log-odds below which a token counts as unknown, nats
    """

    floor: float = -3.0

    @property
    def needs(self) -> Mapping[Role, Needs]:
        return {"forget": Needs(policy=(Nll(),))}

    def loss(self, batch: Mapping[Role, Observed]) -> Tensor:
        forget = batch["forget"]
        return forget.mean((log_odds(forget.policy[Nll()]) - self.floor).relu())


def log_odds(nll: Tensor) -> Tensor:
    """log p / (1 - p) with p = exp(-nll). nll: [N], nats; below 1e-6 it counts as that. Returns [N]."""
    nll = nll.clamp(min=_CERTAIN)
    return -nll - torch.log(-torch.expm1(-nll))


@dataclass(frozen=True, kw_only=True)
class DeepEUA(EUA):
    """EUA's loss over the rows; after that `blocks` of `rounds`, each with a rest of healing at its end. A round:

        phi    = theta, fine-tuned on a drawn share of the forget rows (the first attack)
        psi    = theta with a part of the original's matrices in it: those of attention, of the MLPs, of one layer (the second)
        D      = gradients at phi and psi, each of length 1, of mean_forget relu(log odds of the token + 3)
        D_W    = (G_W + damping)^-1 [D_W without its `dropped` largest singular components] (A_W + damping)^-1
        theta <- theta - size |theta| D / |D|              all attention and MLP matrices together
        heal:    AdamW on KL(original || theta) + hidden |h - h0|^2 / |h0|^2 + healing_gamma (EUA's hinges), retained rows

    A_W and G_W are second moments of each matrix's inputs and output gradients over retained rows. EUA alone hides much behind
    one switch that any fine-tuning turns off; here what the fine-tuned copy knows is taken out of the weights.

    With `hardening_steps` the model is first trained against a copy phi under attack: phi takes a step on forget rows A, and

        theta <- AdamW(theta, clip(g1, 1) + clip(g2, 0.7)),  phi moves by what theta moves
        g1     = gradient at theta of NLL(retain) + hidden |h - h0|^2 / |h0|^2 + gamma (EUA's hinges)
        g2     = gradient at phi of cap_weight mean_B relu(log p - cap)^2 + NLL(retain)

    B: forget rows that are not in A; cap: what an n-gram model of the retained answers gives the token, 0.0009 to 0.5. With
    `hardening_again` the same is done after each block's rounds: it heals, and what it heals with does not bring back the rest.

    Parameters beside EUA's
        blocks, rounds          how many rounds there are, and after how many there is a rest
        attack_share            of the forget rows, that the attack is fine-tuned on, drawn anew each round
        attack_steps            of the attack, 8 rows each
        attack_rate             its learning rate, as a factor of the run's
        restoring               whether there is the second attack
        size                    of a round's step, as a share of the weights' length
        dropped                 singular components left out of each matrix's gradient
        damping                 of the second moments, whose mean eigenvalue is 1
        healing_steps           after each round's step, 16 retained and self-written rows and 8 forget rows each
        rest_steps              of healing after each block
        healing_rate            its learning rate, as a factor of the run's
        hidden, healing_gamma   weights of hidden states and hinges while healing
        written                 questions with names crossed that the original answers itself: half of what is healed on
        hardening_steps         of training against the attacked copy, 8 rows of each kind
        hardening_again         steps of it after each block's rounds
        hardening_rate          its learning rate, as a factor of the run's
        hardening_rest          healing steps after it
        cap_weight              weight of what the attacked copy knows above the cap

    Source: this project; the step after RepSelect, 2606.17168, the factors after 1503.05671, healing after 2506.06278.
    """

    blocks: Annotated[int, NOT_NEGATIVE] = 1
    rounds: Annotated[int, POSITIVE] = 4
    attack_share: Annotated[float, INSIDE_UNIT] = 0.1
    attack_steps: Annotated[int, POSITIVE] = 20
    attack_rate: Annotated[float, FINITE] = 5 / 3
    restoring: bool = False
    size: Annotated[float, INSIDE_UNIT] = 0.04
    dropped: Annotated[int, NOT_NEGATIVE] = 32
    damping: Annotated[float, FINITE] = 0.05
    healing_steps: Annotated[int, NOT_NEGATIVE] = 12
    rest_steps: Annotated[int, NOT_NEGATIVE] = 60
    healing_rate: Annotated[float, FINITE] = 1.0
    hidden: NotNegative = 3.0
    healing_gamma: NotNegative = 0.05
    written: Annotated[int, NOT_NEGATIVE] = 1500
    hardening_steps: Annotated[int, NOT_NEGATIVE] = 260
    hardening_again: Annotated[int, NOT_NEGATIVE] = 150
    hardening_rate: Annotated[float, FINITE] = 4 / 3
    hardening_rest: Annotated[int, NOT_NEGATIVE] = 90
    cap_weight: NotNegative = 0.1

    @property
    def deepening(self) -> Deepening | None:
        if not self.blocks and not self.hardening_steps:
            return None
        return Deepening(
            blocks=self.blocks,
            rounds=self.rounds,
            attack=AttackInLoop(self.attack_share, self.attack_steps, self.attack_rate, self.restoring),
            step=MinorStep(self.size, self.dropped, self.damping, moment_rows=320),
            knowledge=LogOdds(),
            healing=self._healing,
            healing_steps=self.healing_steps,
            rest_steps=self.rest_steps,
            healing_rate=self.healing_rate,
            written=self.written,
            hardening=self._hardening(self.hardening_steps),
            between=self._hardening(self.hardening_again),
        )

    @property
    def _healing(self) -> Healing:
        return Healing(self.hidden, self.healing_gamma, self.ratio, self.temperature)

    def _hardening(self, steps: int) -> Hardening | None:
        if not steps:
            return None
        return Hardening(
            steps=steps,
            rate=self.hardening_rate,
            share=self.attack_share,
            held=replace(self._healing, gamma=self.gamma, likelihood=True),
            weight=self.cap_weight,
            rest_steps=self.hardening_rest,
        )
