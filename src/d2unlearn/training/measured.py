"""The recipe that measures: targets, and all that they leave open, found on the model and the rows themselves.

`measure` chooses and `config_with` makes the `UnlearnConfig` that the command trains with:

    trainer = UnlearnTrainer(model, UnlearnConfig("out", eval_rows=STEERING_ROWS), EUA(), forget, retain, ...)
    trainer.args = config_with(trainer.args, measure(trainer, keep_at_least=0.99))
    trainer.train()
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
from torch import nn
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from d2unlearn.errors import ConfigError
from d2unlearn.runtime import say
from d2unlearn.schema import Tokens
from d2unlearn.sharding import is_sharded
from d2unlearn.teacher_forcing import score_rows
from d2unlearn.training.arguments import UnlearnConfig
from d2unlearn.training.monitor import TO_FORGET
from d2unlearn.training.probe import RateTrial, chosen_rate, probe_rates
from d2unlearn.training.recipe import PUBLISHED_EPOCHS, PUBLISHED_ROWS, automatic_learning_rate
from d2unlearn.training.steering import STEERED
from d2unlearn.training.targets import Targets, forgotten
from d2unlearn.training.trainer import UnlearnTrainer

MEASURED_METHODS = ("eua",)
"""Methods that the command trains so; all others keep their recipes."""
STEERING_ROWS = 64
"""Rows of each kind that are looked at on the way: enough for a hundredth of the tokens, few enough to look often."""
EVALUATION_SHARE = 0.1
"""What of the time of training evaluations may take at most."""
FORWARD_SHARE = 0.4
"""What looking at a row takes of what training on it takes: one forward of three passes, and two heads."""
SWAPS = 64
"""Pairs of a question and another row's answer, at least, where there are so many."""
PERCENTILE = 95.0
SHORTEST_WARMUP, LONGEST_WARMUP = 10, 50
"""Steps; an epoch where that lies between."""


@dataclass(frozen=True)
class MeasuredChoices:
    """What was chosen, and why. `trials`: of the learning rate, none where it was given or nothing could be told."""

    forget_below: float
    forget_below_is: str
    keep_at_least: float
    learning_rate: float
    learning_rate_is: str
    trials: tuple[RateTrial, ...]
    eval_steps: int
    warmup_steps: int
    max_steps: int
    free_weights: tuple[str, ...]


def measure(
    trainer: UnlearnTrainer,
    *,
    forget_below: float | None = None,
    keep_at_least: float = 0.99,
    retain_model: nn.Module | None = None,
    learning_rate: float | None = None,
    epochs: float | None = None,
    free_weights: Sequence[str] = STEERED,
) -> MeasuredChoices:
    """Choose all that is left open, on the trainer's model and rows; both are afterwards as they were.

    retain_model: one that never knew the rows; its answer probability is then the bound. learning_rate, epochs, free_weights
    (the method's weights that may be raised): what is given is not measured. Raises `ConfigError` for targets that cannot be.
    """
    if is_sharded(_model(trainer)):
        raise ConfigError(["the measured recipe puts whole weights back after its probe: leave fsdp out"])
    if not 0 < keep_at_least < 1:
        raise ConfigError([f"keep_at_least should be above 0 and below 1, not {keep_at_least}"])
    bound, why = (forget_below, "as given") if forget_below is not None else forget_bound(trainer, retain_model)
    if not 0 < bound < 1:
        raise ConfigError([f"forget_below should be above 0 and below 1, not {bound:g} ({why})"])
    targets = Targets(bound, keep_at_least)
    first = automatic_learning_rate(sum(p.numel() for p in _model(trainer).parameters()), lora=_is_adapted(trainer))
    trials = [] if learning_rate is not None else probe_rates(trainer, first, targets)
    rate = chosen_rate(trials, first) if learning_rate is None else learning_rate
    steps = trainer.steps_per_epoch
    every = evaluation_steps(_tokens_looked_at(trainer), _tokens_trained_on(trainer))
    return MeasuredChoices(
        forget_below=bound,
        forget_below_is=why,
        keep_at_least=keep_at_least,
        learning_rate=rate,
        learning_rate_is=rate_is(trials, given=learning_rate is not None),
        trials=tuple(trials),
        eval_steps=every,
        warmup_steps=min(max(SHORTEST_WARMUP, steps), LONGEST_WARMUP),
        max_steps=most_steps(steps, _effective_batch(trainer), every, epochs),
        free_weights=tuple(free_weights),
    )


def config_with(args: UnlearnConfig, choices: MeasuredChoices) -> UnlearnConfig:
    """A copy of a config with the choices in it."""
    config: Any = copy(args)
    config.forget_below, config.keep_at_least = choices.forget_below, choices.keep_at_least
    config.free_weights = list(choices.free_weights)
    config.learning_rate = choices.learning_rate
    config.warmup_epochs, config.warmup_steps = 0.0, choices.warmup_steps
    config.max_steps = choices.max_steps
    config.eval_strategy, config.save_strategy = IntervalStrategy.STEPS, SaveStrategy.STEPS
    config.eval_steps = config.save_steps = choices.eval_steps
    config.metric_for_best_model, config.greater_is_better, config.load_best_model_at_end = "standing", True, True
    return config  # type: ignore[no-any-return]


def choices_of(stored: Mapping[str, Any]) -> MeasuredChoices:
    """From what `asdict` made of them."""
    trials = tuple(RateTrial(*trial) for trial in stored["trials"])
    return MeasuredChoices(**{**stored, "trials": trials, "free_weights": tuple(stored["free_weights"])})


def tell(choices: MeasuredChoices) -> None:
    """What was chosen, a line each, for a person."""
    say(
        f"targets: forget at most {choices.forget_below:.3g} ({choices.forget_below_is}), of rows and of their renderings; "
        f"keep at least {choices.keep_at_least:g} of the tokens that the original has right, retained and near"
    )
    for trial in choices.trials:
        ended = "passes" if trial.passed else "loses too much"
        say(f"  probe: rate {trial.rate:.2g}, {trial.steps} steps: forget {trial.forget:.3f}, kept {trial.kept:.3f}: {ended}")
    weighed = " and ".join(choices.free_weights)
    say(
        f"learning rate {choices.learning_rate:g} ({choices.learning_rate_is}); warm-up {choices.warmup_steps} steps, at most "
        f"{choices.max_steps}, looked at every {choices.eval_steps}; {weighed or 'no weight'} raised where a target is missed; "
        "ends when both targets have held twice"
    )


def forget_bound(trainer: UnlearnTrainer, retain_model: nn.Module | None) -> tuple[float, str]:
    """(bound, what it is): the retain model's own probability of the forgotten answers, else the percentile of swapped ones.

    With a retain model it is what `forgotten` makes of its means. Raises `ConfigError` for rows that ask nothing.
    """
    watched = trainer.watched
    if retain_model is not None:
        plain, reworded = (_mean_probability(trainer, retain_model, watched.get(name, ())) for name in TO_FORGET)
        return forgotten(plain, reworded), "the retain model's"
    pairs = swapped(watched["forget"], watched["retain"])
    if not pairs:
        raise ConfigError(["the forget rows ask nothing whose answers could be swapped: give --forget-below or --retain-model"])
    found = float(np.percentile(_probabilities(trainer, _model(trainer), pairs), PERCENTILE))
    why = f"the {PERCENTILE:g}th percentile of the original's probability of {len(pairs)} swapped answers"
    return float(f"{found:.4g}"), why


def swapped(forget: Sequence[Tokens], retain: Sequence[Tokens]) -> list[Tokens]:
    """Forget questions with the answers of other forget rows, `SWAPS` or a few more; of a single row with retained answers.

    A row is paired with the one half of the list away, then with that row's neighbours. Rows without a prompt, and answers that
    are the row's own, are left out.
    """
    asked = [row for row in forget if _asks(row)]
    others = asked if len({_answer(row) for row in asked}) > 1 else [row for row in retain if _asks(row)]
    if not asked or not others:
        return []
    half = len(others) // 2
    pairs = (
        Tokens(f"{row.example_id}/{other.example_id}", _prompt(row) + _answer(other), _mask(row, other), other.ends)
        for shift in range(len(others))
        for index, row in enumerate(asked)
        if _answer(other := others[(index + half + shift) % len(others)]) != _answer(row)
    )
    return list(islice(pairs, max(SWAPS, len(asked)) if len(others) > 1 else 1))


def evaluation_steps(looked_at: float, trained_on: float) -> int:
    """Steps between evaluations that take `EVALUATION_SHARE` at most. Both are tokens: of an evaluation and of a step."""
    return max(1, math.ceil(FORWARD_SHARE * looked_at / trained_on / EVALUATION_SHARE))


def most_steps(steps_per_epoch: int, pairs: int, every: int, epochs: float | None) -> int:
    """Steps at most, a whole number of evaluations: of so many epochs where they are given, else as many as pass ten times over
    400 rows, or ten times over the rows if these are more.
    """
    usual = PUBLISHED_EPOCHS * max(math.ceil(PUBLISHED_ROWS / pairs), steps_per_epoch)
    wanted = usual if epochs is None else math.ceil(epochs * steps_per_epoch)
    return math.ceil(wanted / every) * every


def rate_is(trials: Sequence[RateTrial], *, given: bool) -> str:
    """Where a learning rate comes from, in words."""
    if given:
        return "as given"
    if not trials:
        return "from the model's size: there was nothing to probe it on"
    return "the largest that passed" if any(trial.passed for trial in trials) else "the smallest of those probed, none passed"


def account(choices: MeasuredChoices) -> dict[str, Any]:
    """For a file of JSON; `choices_of` reads it back."""
    return {**asdict(choices), "trials": [list(trial) for trial in choices.trials]}


def _probabilities(trainer: UnlearnTrainer, model: nn.Module, rows: Sequence[Tokens]) -> list[float]:
    """Of each row's answer, the geometric mean over its tokens."""
    training = model.training
    size = trainer.args.per_device_eval_batch_size
    scored = score_rows(model.eval(), rows, batch_size=size)
    model.train(training)
    return [math.exp(-row.mean_nll) for row in scored]


def _mean_probability(trainer: UnlearnTrainer, model: nn.Module, rows: Sequence[Tokens]) -> float:
    return float(np.mean(_probabilities(trainer, model, rows))) if rows else math.nan


def _asks(row: Tokens) -> bool:
    """Whether there is a question before the answer: more than the token that begins a text."""
    return row.answer_length > 0 and sum(not answered for answered in row.answer_mask) > 1


def _prompt(row: Tokens) -> tuple[int, ...]:
    return row.input_ids[: row.answer_mask.index(True)]


def _answer(row: Tokens) -> tuple[int, ...]:
    return row.input_ids[row.answer_mask.index(True) :]


def _mask(row: Tokens, other: Tokens) -> tuple[bool, ...]:
    return (False,) * row.answer_mask.index(True) + other.answer_mask[other.answer_mask.index(True) :]


def _tokens_looked_at(trainer: UnlearnTrainer) -> float:
    distinct = dict.fromkeys(row for watched in trainer.watched.values() for row in watched)
    return float(sum(len(row.input_ids) for row in distinct))


def _tokens_trained_on(trainer: UnlearnTrainer) -> float:
    """Of one step of one process."""
    args = trainer.args
    return args.per_device_train_batch_size * args.gradient_accumulation_steps * trainer.mean_pair_length


def _effective_batch(trainer: UnlearnTrainer) -> int:
    args = trainer.args
    return int(args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size)


def _is_adapted(trainer: UnlearnTrainer) -> bool:
    return hasattr(_model(trainer), "peft_config")


def _model(trainer: UnlearnTrainer) -> nn.Module:
    assert trainer.model is not None
    return trainer.model
