"""How much comes back: fine-tune an unlearned model on a few of the forgotten rows, then ask for all the others.

A model that never knew has nothing to bring back: its numbers under the same attack are what the others are to be held against.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from transformers import PreTrainedModel

from d2unlearn.data.batching import pad_tokens
from d2unlearn.errors import ConfigError
from d2unlearn.metrics.memorization import answer_probability
from d2unlearn.observation import observe
from d2unlearn.quantities import Nll
from d2unlearn.runtime import drawing_from
from d2unlearn.schema import MetricResult, RelearningResult, Tokens
from d2unlearn.stats import bootstrap_interval
from d2unlearn.teacher_forcing import score_rows

Choice = Literal["first", "spread"]
"""Which rows are relearned: the first of the file (a few authors in full), or a few of every group."""
CHOICES: tuple[Choice, ...] = ("first", "spread")


@dataclass(frozen=True)
class Relearning:
    """An attack. Defaults: a tenth of the rows (40 of 400), AdamW at 5e-4 with batches of 8, looked at after 5 and 20 steps.

    `learning_rate` is for models of a few million parameters. `seed` draws the rows and their order.
    """

    share: float = 0.1
    steps: tuple[int, ...] = (5, 20)
    learning_rate: float = 5e-4
    batch_size: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        mistakes = [] if 0 < self.share < 1 else [f"share must lie between 0 and 1, not {self.share}"]
        mistakes += [] if self.steps and min(self.steps) >= 1 else ["steps should be counts of at least 1"]
        mistakes += [] if self.learning_rate > 0 and self.batch_size >= 1 else ["learning_rate and batch_size must be positive"]
        if mistakes:
            raise ConfigError(mistakes)


def relearn(
    model: PreTrainedModel,
    rows: Sequence[Tokens],
    groups: Sequence[str] | None,
    choice: Choice,
    attack: Relearning,
    *,
    judged: Collection[int] | None = None,
    eval_batch_size: int = 32,
) -> RelearningResult:
    """Attack a copy of the model, in memory; the model is left as it is and nothing is written.

    `groups`: of each row, for the interval's bootstrap and for `spread`; None: every row by itself. `judged`: indices of the
    rows that may be asked for, where they were not relearned; None: all. Raises `ConfigError` when there are too few rows for
    some to be relearned and some to be asked for.
    """
    chosen = attacked_rows(len(rows), groups, choice, share=attack.share, seed=attack.seed)
    asked = [index for index in range(len(rows)) if index not in set(chosen) and (judged is None or index in judged)]
    if not chosen or not asked:
        raise ConfigError([f"{len(rows)} rows are too few to relearn a share of {attack.share:g} and to ask for the rest"])
    labels = None if groups is None else [groups[index] for index in asked]
    probability: dict[str, MetricResult] = {}
    for steps, attacked in _attacked(model, [rows[index] for index in chosen], attack):
        others = [rows[index] for index in asked]
        scores = score_rows(attacked, others, batch_size=eval_batch_size, name="rows not relearned")
        interval = bootstrap_interval([answer_probability(row.nll) for row in scores], groups=labels, seed=attack.seed)
        probability[str(steps)] = MetricResult("answer_probability", *interval, len(asked) - interval.n, "lower")
    return RelearningResult(choice, len(chosen), probability)


def attacked_rows(n: int, groups: Sequence[str] | None, choice: Choice, *, share: float, seed: int) -> list[int]:
    """Indices of the rows to relearn, `share` of n: the first, or drawn so that all groups give as many, give or take one."""
    count = round(share * n)
    if choice == "first":
        return list(range(count))
    rng = np.random.default_rng(seed)
    labels = [str(index) for index in range(n)] if groups is None else groups
    turns, drawn = Counter[str](), list[tuple[int, int]]()
    for index in rng.permutation(n).tolist():
        turns[labels[index]] += 1
        drawn.append((turns[labels[index]], index))
    return sorted(index for _, index in sorted(drawn, key=lambda pair: pair[0])[:count])


def batch_order(n: int, *, steps: int, batch_size: int, seed: int) -> Iterator[list[int]]:
    """Indices of n rows for each step: shuffled passes, one after another, cut into batches."""
    rng = np.random.default_rng(seed)
    needed = math.ceil(steps * batch_size / n)
    order = np.concatenate([rng.permutation(n) for _ in range(needed)])
    yield from order[: steps * batch_size].reshape(steps, batch_size).tolist()


def _attacked(model: PreTrainedModel, rows: Sequence[Tokens], attack: Relearning) -> Iterator[tuple[int, PreTrainedModel]]:
    """(steps taken, the attacked copy in evaluation mode) before the first step and after each number of steps asked for."""
    attacked = copy.deepcopy(model).float()  # type: ignore[no-untyped-call]
    attacked.requires_grad_(True)
    optimizer = torch.optim.AdamW(attacked.parameters(), lr=attack.learning_rate)
    yield 0, attacked.eval()
    batches = batch_order(len(rows), steps=max(attack.steps), batch_size=attack.batch_size, seed=attack.seed)
    for step, indices in enumerate(batches, start=1):
        with drawing_from(attack.seed + step, model.device), torch.enable_grad():  # dropout
            _step(attacked.train(), [rows[index] for index in indices], optimizer)
        if step in attack.steps:
            yield step, attacked.eval()


def _step(model: PreTrainedModel, rows: Sequence[Tokens], optimizer: torch.optim.Optimizer) -> None:
    batch = pad_tokens(rows, pad_id=0).to(model.device)
    loss = observe(model, {"forget": batch}, {"forget": (Nll(),)})["forget"][Nll()].mean()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
