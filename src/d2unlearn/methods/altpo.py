"""AltPO: prefer another answer, one that the model itself wrote before training, to the true one."""

from __future__ import annotations

from dataclasses import dataclass

from d2unlearn.methods.base import SelfWritten, check_parameters
from d2unlearn.methods.dpo import DPO


@dataclass(frozen=True, kw_only=True)
class AltPO(DPO):
    """The loss of `DPO`, with alternate answers in place of refusals.

    Parameters (defaults: those of `DPO`; 4 samples at temperature 1.5, no instruction)
        those of `DPO`
        alternate_samples       so many answers are drawn for each question; the one least like the true answer is kept
        alternate_temperature   temperature they are drawn at
        alternate_instruction   for models that follow instructions: what they are told, with {question} and {answer}

    Source: Mekala et al. 2024, arXiv 2409.13474 (five answers a question, written by instruction).
    """

    alternate_samples: int = 4
    alternate_temperature: float = 1.5
    alternate_instruction: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_parameters(self, positive=("alternate_samples", "alternate_temperature"))

    @property
    def self_written(self) -> SelfWritten:
        return SelfWritten(self.alternate_samples, self.alternate_temperature, self.alternate_instruction)
