"""An unlearning method of one's own, whole: a ceiling on how likely a forgotten answer token may be.

python examples/probability_ceiling.py MODEL FORGET RETAIN OUTPUT
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from d2unlearn.commands import UnlearnSettings, unlearn
from d2unlearn.methods import METHODS, Method, Needs
from d2unlearn.methods.base import NotNegative, Positive
from d2unlearn.observation import Observed
from d2unlearn.quantities import Nll
from d2unlearn.schema import Role


@dataclass(frozen=True)
class ProbabilityCeiling(Method):
    """L = mean_forget relu(log p - log ceiling)^2 + alpha NLL(retain).

    A forgotten token that is less likely than the ceiling is left alone, so that nothing runs away as in gradient ascent.

    Parameters
        ceiling   how likely a forgotten answer token may be
        alpha     weight of the retained likelihood
    """

    ceiling: Positive = 0.01
    alpha: NotNegative = 1.0

    @property
    def needs(self) -> Mapping[Role, Needs]:
        return {"forget": Needs(policy=(Nll(),)), "retain": Needs(policy=(Nll(),))}

    def loss(self, batch: Mapping[Role, Observed]) -> Tensor:
        forget, retain = batch["forget"], batch["retain"]
        above = (-forget.policy[Nll()] - math.log(self.ceiling)).relu()
        return forget.mean(above**2) + self.alpha * retain.mean(retain.policy[Nll()])


if __name__ == "__main__":
    METHODS["probability_ceiling"] = ProbabilityCeiling  # for this process; an entry point makes it one for every command
    model, forget, retain, output = sys.argv[1:]
    print(unlearn(UnlearnSettings(model, forget, retain, output, method="probability_ceiling")))
