"""The gradient-norm attack's numbers: one example at a time, since every example needs the gradient of its own loss."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean

import torch
from transformers import PreTrainedModel

from d2unlearn.benchmark.conventions import Convention
from d2unlearn.data.batching import pad_tokens
from d2unlearn.observation import observe
from d2unlearn.quantities import Nll
from d2unlearn.schema import Tokens


def gradient_norms(model: PreTrainedModel, rows: Sequence[Tokens], convention: Convention) -> Iterator[float]:
    """Mean over parameter tensors of the 2-norm of the gradient of each answer's mean NLL; NaN for nothing to score.

    The model's own gradients are cleared. Source: 2402.17012, as open-unlearning averages it.
    """
    training = model.training
    model.train(convention.gradients_in_training_mode)
    try:
        for row in rows:
            yield _gradient_norm(model, row, convention)
    finally:
        model.zero_grad()
        model.train(training)


def _gradient_norm(model: PreTrainedModel, row: Tokens, convention: Convention) -> float:
    batch = pad_tokens([row], pad_id=0).to(model.device)
    model.zero_grad()
    with torch.enable_grad():
        nll = observe(model, {"forget": batch}, {"forget": [Nll()]})["forget"][Nll()]
        read = nll[:-1] if convention.drops_last_token else nll
        if not len(read):
            return math.nan
        read.mean().backward()  # type: ignore[no-untyped-call]
    return fmean(float(p.grad.float().norm()) for p in model.parameters() if p.grad is not None)
