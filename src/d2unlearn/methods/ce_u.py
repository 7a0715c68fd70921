"""CE-U: teach the model its own answer distribution with the true token left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from d2unlearn.methods.base import NOT_NEGATIVE, ConventionName, Method, Needs
from d2unlearn.observation import Observed
from d2unlearn.positions import Predicting
from d2unlearn.quantities import TargetlessCrossEntropy
from d2unlearn.schema import Role


@dataclass(frozen=True, kw_only=True)
class CEU(Method):
    """L = mean -sum_v q_v log p_v, with q = softmax(z with z_y = -inf) a constant to the gradient; there is no retain term.

    Parameters (defaults: 1)
        ignore_first_n_answer_tokens   so many answer tokens of each row are left as they are
        convention                     makes no difference here

    Source: Yang 2025, arXiv 2503.01224; open-unlearning, src/trainer/unlearn/ceu.py.
    """

    ignore_first_n_answer_tokens: Annotated[int, NOT_NEGATIVE] = 1
    convention: ConventionName = "d2unlearn"

    @property
    def needs(self) -> Mapping[Role, Needs]:
        positions = Predicting(skip=self.ignore_first_n_answer_tokens)
        return {"forget": Needs(policy=(TargetlessCrossEntropy(),), positions=positions)}

    def loss(self, batch: Mapping[Role, Observed]) -> Tensor:
        forget = batch["forget"]
        return forget.mean(forget.policy[TargetlessCrossEntropy()])
