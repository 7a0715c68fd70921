"""Relearning: fine-tune on a few of the forgotten rows, then ask for all the others. How much comes back?

A model that never knew has nothing to bring back: its numbers under the same attack say what the attack itself teaches, and are
what the others are to be held against. What suits one model is weak on another, so the attack is made with several learning
rates, looked at after few steps and many, and the worst counts.

Source: Deeb and Roger (2410.08827) for facts relearned and others asked; UNDO (2506.06278) for the worst of several learning
rates; Hu et al. (2406.13356) for benign rows.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn
from transformers import PreTrainedModel

from d2unlearn.attacks.reading import AskedRows, NotShownError, Reading, Setting
from d2unlearn.attacks.relearned_rows import Division, RowChoice
from d2unlearn.attacks.scoring import probabilities
from d2unlearn.errors import ConfigError
from d2unlearn.fine_tuning import fine_tuning_steps
from d2unlearn.metrics.memorization import answer_probability
from d2unlearn.models import low_rank_config, with_fresh_adapter
from d2unlearn.runtime import drawing_from
from d2unlearn.schema import MetricResult, RelearningResult, Tokens
from d2unlearn.stats import bootstrap_interval
from d2unlearn.teacher_forcing import score_rows

TWO_DECADES = (0.02, 0.2, 1.0, 2.0)
"""Learning rates of a grid, as factors of one at which few steps bring much back, and more begin to destroy (`suited_rate`)."""
SUITED = 5 / 3
"""That rate, as a factor of the one that unlearning takes (`training.recipe`): 5e-4 for 4.2 million parameters."""


@dataclass(frozen=True)
class Relearning:
    """One attack: AdamW on the mean NLL of batches of answers, looked at after some numbers of steps.

    Batches are no larger than there are rows. `lora_rank`: of low-rank adapters that are trained in the weights' stead; None:
    all weights are. `seed` draws the rows' order.
    """

    learning_rate: float = 5e-4
    steps: tuple[int, ...] = (1, 5, 20, 80, 200)
    batch_size: int = 8
    seed: int = 0
    lora_rank: int | None = None

    def __post_init__(self) -> None:
        mistakes = [] if self.steps and min(self.steps) >= 1 else ["steps should be counts of at least 1"]
        mistakes += [] if self.learning_rate > 0 and self.batch_size >= 1 else ["learning_rate and batch_size must be positive"]
        mistakes += [] if self.lora_rank is None or self.lora_rank >= 1 else ["lora_rank must be at least 1"]
        if mistakes:
            raise ConfigError(mistakes)


@dataclass(frozen=True)
class RelearningGrid:
    """How much of the attack is made: several choices of rows, each with several learning rates.

    rates: of each choice, as factors of the rate that suits the model; share: of the rows that the first two choices relearn.
    asked: at most so many rows of a set, drawn; None: all. draws: how often rows are drawn anew. lora: with how many choices of
    rows, those that brought most back, low-rank adapters are trained too, at `lora_factor` times the rate that did.
    """

    rates: Mapping[RowChoice, tuple[float, ...]]
    steps: tuple[int, ...] = (1, 5, 20, 80, 200)
    share: float = 0.1
    batch_size: int = 8
    asked: int | None = None
    draws: int = 1
    lora: int = 0
    lora_rank: int = 16
    lora_factor: float = 4.0

    def __post_init__(self) -> None:
        counts = {
            "asked": 1 if self.asked is None else self.asked,
            "draws": self.draws,
            "lora_rank": self.lora_rank,
            "batch_size": self.batch_size,
        }
        mistakes = [] if 0 < self.share < 1 else [f"share must lie between 0 and 1, not {self.share}"]
        mistakes += [] if self.rates and all(self.rates.values()) else ["rates should name choices of rows, and rates for each"]
        mistakes += [] if self.steps and min(self.steps) >= 1 else ["steps should be counts of at least 1"]
        mistakes += [f"{name} must be at least 1, not {count}" for name, count in counts.items() if count < 1]
        if mistakes:
            raise ConfigError(mistakes)


def grid_rate(suited: float, factor: float) -> float:
    """A learning rate of a grid, rounded to two digits. suited: the rate that suits the model."""
    return float(f"{suited * factor:.1e}")


def relearned(model: PreTrainedModel, rows: Sequence[Tokens], attack: Relearning) -> Iterator[tuple[int, nn.Module]]:
    """(steps taken, the attacked copy in evaluation mode), for each number of steps asked for.

    The copy is in memory, in float32; the model is left as it is. Raises `NotShownError` where it takes no adapters.
    """
    attacked = _copy_to_train(model, attack)
    steps_taken = fine_tuning_steps(
        attacked,
        rows,
        learning_rate=attack.learning_rate,
        steps=max(attack.steps),
        batch_size=attack.batch_size,
        seed=attack.seed,
    )
    for step in steps_taken:
        if step in attack.steps:
            yield step, attacked.eval()


def ask_after_relearning(
    model: PreTrainedModel,
    rows: Sequence[Tokens],
    asked: Sequence[AskedRows],
    attack: Relearning,
    setting: Mapping[str, Setting],
    *,
    batch_size: int = 32,
) -> list[Reading]:
    """The answer probability of the asked rows, set by set, at each number of steps. setting: what else tells the readings."""
    adapters = {} if attack.lora_rank is None else {"trained": "LoRA"}
    about = {**setting, **adapters, "learning rate": attack.learning_rate}
    return [
        probabilities(attacked, of_set, {**about, "steps": steps}, batch_size=batch_size)
        for steps, attacked in relearned(model, rows, attack)
        for of_set in asked
    ]


def relearn(
    model: PreTrainedModel,
    rows: Sequence[Tokens],
    groups: Sequence[str] | None,
    choice: RowChoice,
    division: Division,
    attacks: Sequence[Relearning],
    *,
    judged: Collection[int] | None = None,
    eval_batch_size: int = 32,
) -> RelearningResult:
    """The worst of several attacks, which differ in their learning rate, at each number of steps; before the first, at rest.

    `groups`: of each row, for the interval's bootstrap; None: every row by itself. `judged`: indices of the rows that may be
    asked for, where they were not relearned; None: all. Raises `NotShownError` where none is left to ask for.
    """
    asked = [index for index in division.asked if judged is None or index in judged]
    if not asked:
        raise NotShownError(f"{len(rows)} rows are too few to relearn some ({choice}) and to ask for others")
    labels = None if groups is None else [groups[index] for index in asked]

    def asked_of(attacked: nn.Module) -> MetricResult:
        scores = score_rows(attacked, [rows[index] for index in asked], batch_size=eval_batch_size, name="rows not relearned")
        interval = bootstrap_interval([answer_probability(row.nll) for row in scores], groups=labels, seed=attacks[0].seed)
        return MetricResult("answer_probability", *interval, len(asked) - interval.n, "lower")

    probability, rates = {"0": asked_of(model)}, dict[str, float]()
    for attack in attacks:
        for steps, attacked in relearned(model, [rows[index] for index in division.relearned], attack):
            found, key = asked_of(attacked), str(steps)
            if key not in probability or math.isnan(probability[key].value) or found.value > probability[key].value:
                probability[key], rates[key] = found, attack.learning_rate
    return RelearningResult(choice, len(division.relearned), probability, tuple(each.learning_rate for each in attacks), rates)


def at_rates(attack: Relearning, rates: Sequence[float]) -> list[Relearning]:
    """The attack with each of these learning rates."""
    return [replace(attack, learning_rate=rate) for rate in rates]


def _copy_to_train(model: PreTrainedModel, attack: Relearning) -> nn.Module:
    attacked: PreTrainedModel = copy.deepcopy(model).float()  # type: ignore[no-untyped-call]
    if attack.lora_rank is None:
        return attacked.requires_grad_(True)
    with drawing_from(attack.seed, model.device):
        try:
            return with_fresh_adapter(attacked, low_rank_config(attack.lora_rank))
        except ValueError as error:
            raise NotShownError(f"low-rank adapters cannot be put into this model ({error})") from error
