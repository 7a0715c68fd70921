"""Gradient ascent: make the forgotten answers unlikely, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from d2unlearn.methods.base import ConventionName, Method, Needs
from d2unlearn.observation import Observed
from d2unlearn.quantities import Nll
from d2unlearn.schema import Role


@dataclass(frozen=True, kw_only=True)
class GradientAscent(Method):
    """L = -NLL(forget), a mean over answer positions. Unbounded below: it ends in a broken model, and is the baseline for that.

    Parameters
        convention   makes no difference here

    Source: Jang et al. 2022, arXiv 2210.01504; open-unlearning, src/trainer/unlearn/grad_ascent.py.
    """

    convention: ConventionName = "d2unlearn"

    @property
    def needs(self) -> Mapping[Role, Needs]:
        return {"forget": Needs(policy=(Nll(),))}

    def loss(self, batch: Mapping[Role, Observed]) -> Tensor:
        forget = batch["forget"]
        return -forget.mean(forget.policy[Nll()])
