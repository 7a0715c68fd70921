"""Averaging: an unlearned model's weights, mixed with those of a fine-tune of it.

People average fine-tunes of one model ("model soups", Wortsman et al. 2022, 2203.05482). Neither the fine-tune nor its average
is shown a forgotten row: what comes back was stored.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from d2unlearn.attacks.reading import NotShownError, Setting
from d2unlearn.data.batching import pad_tokens
from d2unlearn.errors import ConfigError
from d2unlearn.fine_tuning import batch_order
from d2unlearn.observation import observe
from d2unlearn.quantities import Nll
from d2unlearn.runtime import drawing_from
from d2unlearn.schema import Tokens


@dataclass(frozen=True)
class Averaging:
    """AdamW on retained rows, then `share` of the fine-tune and the rest of the model: a half, unless said.

    `learning_rate` is for models of a few million parameters.
    """

    steps: int = 20
    learning_rate: float = 5e-4
    batch_size: int = 8
    share: float = 0.5

    def __post_init__(self) -> None:
        mistakes = [] if 0 < self.share <= 1 else [f"share must lie above 0 and be at most 1, not {self.share}"]
        if min(self.steps, self.batch_size) < 1 or self.learning_rate <= 0:
            mistakes.append("steps and batch_size should be at least 1, learning_rate above 0")
        if mistakes:
            raise ConfigError(mistakes)

    @property
    def setting(self) -> Mapping[str, Setting]:
        """What tells it from others, in words and numbers."""
        return {
            "change": "averaged with a fine-tune",
            "share": self.share,
            "learning rate": self.learning_rate,
            "steps": self.steps,
        }


def average_with_fine_tune(
    model: PreTrainedModel, retain: Sequence[Tokens], averaging: Averaging, *, seed: int
) -> PreTrainedModel:
    """The average of the model and of its fine-tune on retained rows, in float32 and evaluation mode. The model stays as it is.

    Raises `NotShownError` where the rows do not fill a batch.
    """
    if len(retain) < averaging.batch_size:
        raise NotShownError(f"{len(retain)} retained rows are too few to fine-tune on in batches of {averaging.batch_size}")
    tuned = fine_tuned(model, retain, averaging, seed=seed)
    with torch.no_grad():
        for ours, before in zip(tuned.parameters(), model.parameters(), strict=True):
            ours.lerp_(before.to(ours), 1 - averaging.share)
    return tuned


def fine_tuned(model: PreTrainedModel, rows: Sequence[Tokens], averaging: Averaging, *, seed: int) -> PreTrainedModel:
    """A copy in float32, after so many steps of AdamW (PyTorch's defaults) on the mean NLL of each batch's answer tokens."""
    tuned: PreTrainedModel = copy.deepcopy(model).float()  # type: ignore[no-untyped-call]
    tuned.requires_grad_(True)
    optimizer = torch.optim.AdamW(tuned.parameters(), lr=averaging.learning_rate)
    batches = batch_order(len(rows), steps=averaging.steps, batch_size=averaging.batch_size, seed=seed)
    with drawing_from(seed, model.device), torch.enable_grad():  # dropout
        tuned.train()
        for indices in batches:
            batch = pad_tokens([rows[index] for index in indices], pad_id=0).to(model.device)
            observe(tuned, {"forget": batch}, {"forget": (Nll(),)})["forget"][Nll()].mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    tuned.requires_grad_(False).eval()  # type: ignore[no-untyped-call]
    return tuned
