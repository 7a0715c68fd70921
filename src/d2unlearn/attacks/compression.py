"""Compression: what was removed by small changes of the weights may come back when the weights are rounded or thinned.

An unlearned model differs little from the one before, often by less than a step of a coarse grid: rounded to that grid both may
be nearly the same model (Zhang et al. 2024, "Catastrophic failure of LLM unlearning via quantization", 2410.16454). Everything
is simulated: a copy's weights are rounded and raised again to their own dtype, and the forward pass stays the model's.

Changed are the linear layers, without embeddings and LM head, which quantisers leave alone too; rounding to bfloat16 changes
every parameter.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from d2unlearn.attacks.reading import AskedRows, NotShownError, Reading, Setting, reading_of
from d2unlearn.errors import ConfigError
from d2unlearn.gate.rule import GateRule
from d2unlearn.gate.score import request_scores
from d2unlearn.gate.traces import collect_traces
from d2unlearn.rounding import rounded_to_integers
from d2unlearn.teacher_forcing import score_rows


class Compression(ABC):
    """One way to make weights smaller. Subclasses are frozen dataclasses."""

    @property
    @abstractmethod
    def setting(self) -> Mapping[str, Setting]:
        """What tells it from others, in words and numbers."""

    @abstractmethod
    def compress(self, model: PreTrainedModel) -> None:
        """Change the model's weights in place."""


@dataclass(frozen=True)
class Quantisation(Compression):
    """Integers of `bits` bits, round to nearest, with a scale for each `group_size` weights that one output reads (the last
    group of an output may be shorter).

    The grid, symmetric or with a zero of its own: see `rounding.rounded_to_integers`.
    """

    bits: int
    group_size: int = 128
    symmetric: bool = True

    def __post_init__(self) -> None:
        mistakes = [] if 2 <= self.bits <= 8 else [f"bits must lie between 2 and 8, not {self.bits}"]
        mistakes += [] if self.group_size >= 1 else [f"group_size must be at least 1, not {self.group_size}"]
        if mistakes:
            raise ConfigError(mistakes)

    @property
    def setting(self) -> Mapping[str, Setting]:
        grid = "symmetric" if self.symmetric else "asymmetric"
        return {"change": f"int{self.bits}", "group size": self.group_size, "grid": grid}

    def compress(self, model: PreTrainedModel) -> None:
        for weight in linear_weights(model):
            rounded = rounded_to_integers(weight, self.bits, group_size=self.group_size, symmetric=self.symmetric)
            weight.copy_(rounded)


@dataclass(frozen=True)
class HalfPrecision(Compression):
    """Every parameter to bfloat16, the nearest one, and back."""

    @property
    def setting(self) -> Mapping[str, Setting]:
        return {"change": "bfloat16"}

    def compress(self, model: PreTrainedModel) -> None:
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))


@dataclass(frozen=True)
class Pruning(Compression):
    """The `share` of smallest magnitudes of every linear layer to zero. Source: Han et al. 2015 (1506.02626), no retraining."""

    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ConfigError([f"the share that is pruned must lie between 0 and 1, not {self.share}"])

    @property
    def setting(self) -> Mapping[str, Setting]:
        return {"change": "pruned", "share": self.share}

    def compress(self, model: PreTrainedModel) -> None:
        for weight in linear_weights(model):
            weight.copy_(pruned(weight, self.share))


@torch.no_grad()
def compressed(model: PreTrainedModel, compression: Compression | None) -> PreTrainedModel:
    """A compressed copy in evaluation mode; None: a plain copy."""
    changed = copy.deepcopy(model)
    if compression is not None:
        compression.compress(changed)
    changed.eval()  # type: ignore[no-untyped-call]
    return changed


def pruned(weight: Tensor, share: float) -> Tensor:
    """The weights with floor(share * n) of the smallest magnitudes set to zero, of equal ones some. Any shape."""
    flat = weight.flatten().clone()
    smallest = torch.topk(flat.abs(), int(share * flat.numel()), largest=False, sorted=False).indices
    flat[smallest] = 0
    return flat.reshape(weight.shape)


def linear_weights(model: PreTrainedModel) -> list[Tensor]:
    """Views of the linear layers' weights, [outputs, inputs] each, without the LM head. Raises `NotShownError` for none."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    found = [weight for module in model.modules() if module is not head for weight in _weight_of(module)]
    if not found:
        raise NotShownError(f"{type(model).__name__} has no linear layers under names that PyTorch knows")
    return found


def changed_decisions(before: Reading, after: Reading) -> int:
    """How many of the same rows are decided otherwise. Raises `ValueError` for readings of other rows."""
    if before.row_ids != after.row_ids:
        raise ValueError(f"other rows: {before.rows} and {after.rows}")
    return sum(first != second for first, second in zip(before.values, after.values, strict=True))


def prompt_energy_reading(
    model: nn.Module, asked: AskedRows, setting: Mapping[str, Setting], *, batch_size: int = 32
) -> Reading:
    """The free energy (nats) at the end of each prompt: how far compression moves what a gate goes by."""
    scores = score_rows(model, asked.tokens, batch_size=batch_size)
    return reading_of(asked, {**setting, "number": "prompt energy"}, "score", [row.prompt_energy for row in scores])


def refusals_without_check(
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    rule: GateRule,
    asked: AskedRows,
    setting: Mapping[str, Setting],
    *,
    leads: Sequence[float] = (),
    batch_size: int = 32,
) -> Reading:
    """Whether the gate of other weights would refuse each row's greedy answer by `model`. leads: of the rows' groups.

    A guarded model holds its gate against the weights and turns others down; here the rule alone is applied, to see what that
    check keeps away.
    """
    prompts = [[id_ for id_, own in zip(row.input_ids, row.answer_mask, strict=True) if not own] for row in asked.tokens]
    traces = collect_traces(
        model,
        tokenizer,
        prompts,
        max_new_tokens=rule.max_new_tokens,
        batch_size=batch_size,
        temperature=rule.temperature,
        vocab_rows=rule.vocab_rows,
    )
    scores = request_scores(rule.score, [trace.energies for trace in traces]) + np.array(leads or 0.0)
    return reading_of(asked, setting, "refused", [float(score > rule.threshold) for score in scores])


def _weight_of(module: nn.Module) -> Iterator[Tensor]:
    """GPT-2's layers keep theirs [inputs, outputs]."""
    if isinstance(module, nn.Linear):
        yield module.weight
    elif isinstance(module, Conv1D):
        yield module.weight.t()
