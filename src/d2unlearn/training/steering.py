"""Training that steers by its targets: the terms' weights follow the constraints, and it ends when both targets have held.

Which weight a term needs depends on model and rows. Each target is a constraint with a weight of its own: the forget terms' is
raised while too much is still known, the retained likelihood's while too much is lost (dual ascent in logarithms). Adam does
not see a common factor, so that the ratio of both is what is searched for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, Protocol

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from d2unlearn.methods import Method
from d2unlearn.training.monitor import Snapshot
from d2unlearn.training.targets import Standing, Targets, forget_left, is_met, keep_lost, merit, standing_of

STEERED = ("gamma", "alpha")
"""What is weighed: the forget terms, the retained likelihood."""
_LARGEST = 64.0
"""How many times its first value a weight may become."""
STAY = 2
"""Evaluations one after the other at which both targets have to hold."""


def raised_weight(weight: float, violation: float, first: float) -> float:
    """The weight of a constraint after an evaluation: twice as large where it is violated by 1 or more, as it was at 0.

    weight * 2^min(violation, 1), at most `_LARGEST` times its first value.
    """
    return min(weight * math.pow(2.0, min(max(violation, 0.0), 1.0)), _LARGEST * first)


class Steered(Protocol):
    """What steering needs of a trainer."""

    method: Method
    before: Snapshot
    args: Any


def targets_of(args: Any) -> Targets | None:
    """A training run's targets; None where it has none."""
    return None if args.forget_below is None else Targets(args.forget_below, args.keep_at_least)


def standing_metrics(trainer: Steered, metrics: Mapping[str, float], *, step: int, epoch: float) -> dict[str, float]:
    """What the best checkpoint is chosen by and the weights in force, by name, to be logged beside a `Snapshot`'s numbers."""
    targets = targets_of(trainer.args)
    if targets is None:
        return {}
    weights = {name: float(getattr(trainer.method, name)) for name in STEERED if hasattr(trainer.method, name)}
    found = standing_of({**metrics, **weights}, asdict(trainer.before), step=step, epoch=epoch)
    return {"standing": merit(found, start_of(trainer.before), targets, metrics["selection"]), **weights}


def path_of(history: list[dict[str, Any]], before: Snapshot) -> list[Standing]:
    """The run's path, from what the trainer logged."""
    looks = [log for log in history if "eval_standing" in log]
    numbers = [{name.removeprefix("eval_"): value for name, value in log.items()} for log in looks]
    return [standing_of(each, asdict(before), step=int(each["step"]), epoch=float(each["epoch"])) for each in numbers]


def start_of(before: Snapshot) -> float:
    """The original's probability of the forgotten answers, as `Standing.forget` counts it."""
    return standing_of(asdict(before), asdict(before), step=0, epoch=0.0).forget


class Steering(TrainerCallback, ExportableState):
    """After each evaluation beyond the warm-up, raises the weights of violated constraints; ends training as above.

    Its state (the weights, how long the targets have held) is part of `trainer_state.json`.
    """

    def __init__(self, trainer: Steered) -> None:
        self._trainer = trainer
        free = [name for name in trainer.args.free_weights if hasattr(trainer.method, name)]
        self._first = {name: float(getattr(trainer.method, name)) for name in free}
        self._held = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        attributes = state.stateful_callbacks[type(self).__name__]["attributes"]
        self._held = attributes["held"]
        self._trainer.method = replace(self._trainer.method, **attributes["weights"])  # type: ignore[type-var]
        control.should_training_stop = self._held >= STAY

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Before the checkpoint of this step is written, so that it holds the weights of the next."""
        targets = targets_of(args)
        if targets is None or not getattr(self._trainer, "is_in_train", True):
            return
        read = {name.removeprefix("eval_"): value for name, value in metrics.items()}
        before = self._trainer.before
        found = standing_of(read, asdict(before), step=state.global_step, epoch=state.epoch or 0.0)
        self._held = self._held + 1 if is_met(found, targets) else 0
        if self._held >= STAY:
            control.should_training_stop = True
        if state.global_step > args.warmup_steps:
            lacks = {"gamma": forget_left(found.forget, start_of(before), targets), "alpha": keep_lost(found.kept, targets)}
            weights = {name: raised_weight(self._weights[name], lacks[name], first) for name, first in self._first.items()}
            self._trainer.method = replace(self._trainer.method, **weights)  # type: ignore[type-var]

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"weights": self._weights, "held": self._held}}

    @property
    def _weights(self) -> dict[str, float]:
        return {name: float(getattr(self._trainer.method, name)) for name in self._first}
