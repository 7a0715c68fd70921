"""A short probe of the learning rate on the model and the rows that are trained on, which leaves both as they were.

From the same weights a few steps are made at a rate, at the rate of a model of this size first, then at twice or half of it.
A rate passes when what is to be forgotten has come half of its way (in logarithms) before much of what should stay is lost:
training repairs a part of that later, so more may be lost here than in the end. The largest rate that passes is taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn

from d2unlearn.runtime import drawing_from, progress
from d2unlearn.training.monitor import Snapshot, WatchedRows
from d2unlearn.training.targets import Targets
from d2unlearn.training.trainer import UnlearnTrainer

STEPS = 16
"""Steps that are made at a rate at most: a rate that has lost little until then passes, too slow as it may be."""
LOOK_EVERY = 4
ROWS = 32
"""Rows of each kind that are looked at."""
FACTOR = 2.0
MOST_TRIALS = 5
TRANSIENT = 2.0
"""So many times the loss allowed in the end may be lost on the way."""


class RateTrial(NamedTuple):
    """One rate: after so many steps, the forgotten answers' mean probability and the share of right tokens that stayed."""

    rate: float
    steps: int
    forget: float
    kept: float
    passed: bool


def next_rate(trials: Sequence[RateTrial], first: float) -> float | None:
    """The rate to try next: up from `first` while rates pass, down while none does; None: the search is over."""
    if not trials:
        return first
    passed = [trial.passed for trial in trials]
    if len(trials) == MOST_TRIALS or (len(set(passed)) > 1):
        return None
    return trials[-1].rate * FACTOR if passed[-1] else trials[-1].rate / FACTOR


def chosen_rate(trials: Sequence[RateTrial], first: float) -> float:
    """The largest that passed; where none did the smallest that was tried, without trials `first`."""
    passed = [trial.rate for trial in trials if trial.passed]
    return max(passed) if passed else min((trial.rate for trial in trials), default=first)


def passes(start: float, forget: float, kept: float, targets: Targets) -> bool | None:
    """Whether a rate that stands there has passed; None: more steps will tell. start: the original's probability."""
    if not (math.isfinite(forget) and kept >= 1 - TRANSIENT * (1 - targets.keep_at_least)):
        return False
    return True if forget <= math.sqrt(start * targets.forget_below) else None


def probe_rates(trainer: UnlearnTrainer, first: float, targets: Targets) -> list[RateTrial]:
    """Trials from `first` on. Weights, random state and what the trainer has counted are afterwards as they were.

    None where it could tell nothing: of answers that should stay the original knows none, or what is to be forgotten is below
    its bound already.
    """
    rows: WatchedRows = {name: list(watched[:ROWS]) for name, watched in trainer.watched.items() if name != "reworded"}
    start = trainer.look(rows, original=trainer.original)
    if start.forget_probability <= targets.forget_below or (math.isnan(start.retain_right) and math.isnan(start.near_right)):
        return []
    trials: list[RateTrial] = []
    while (rate := next_rate(trials, first)) is not None:
        with as_it_was(trainer):
            trials.append(_tried(trainer, rate, rows, start, targets))
    return trials


def _tried(trainer: UnlearnTrainer, rate: float, rows: WatchedRows, start: Snapshot, targets: Targets) -> RateTrial:
    model, args = _model(trainer), trainer.args
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    betas = (args.adam_beta1, args.adam_beta2)
    optimizer = torch.optim.AdamW(trained, lr=rate, betas=betas, weight_decay=args.weight_decay)
    model.train()
    for step in progress(range(1, STEPS + 1), f"trying learning rate {rate:g}"):
        trainer.backward_of(step - 1)
        nn.utils.clip_grad_norm_(trained, args.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        if step % LOOK_EVERY == 0:
            now = trainer.look(rows, original=trainer.original)
            kept = kept_share(start, now)
            passed = passes(start.forget_probability, now.forget_probability, kept, targets)
            if passed is not None:
                return RateTrial(rate, step, now.forget_probability, kept, passed)
    return RateTrial(rate, STEPS, now.forget_probability, kept, True)


def kept_share(before: Snapshot, now: Snapshot) -> float:
    """The least share of the right tokens that stayed, of retained and near rows; NaN where nothing is a number any more."""
    sides = ((before.retain_right, now.retain_right), (before.near_right, now.near_right))
    return min(new / old for old, new in sides if old > 0)


@contextmanager
def as_it_was(trainer: UnlearnTrainer) -> Iterator[None]:
    """Puts trained weights, buffers, gradients, mode and random state back when the block ends, bit for bit."""
    model = _model(trainer)
    changed = [tensor for tensor in model.parameters() if tensor.requires_grad] + list(model.buffers())
    saved = [tensor.detach().clone() for tensor in changed]
    training = model.training
    with drawing_from(trainer.args.seed, next(model.parameters()).device):
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, value in zip(changed, saved, strict=True):
                    tensor.copy_(value)
            model.zero_grad(set_to_none=True)
            model.train(training)


def _model(trainer: UnlearnTrainer) -> nn.Module:
    assert trainer.model is not None
    return trainer.model
