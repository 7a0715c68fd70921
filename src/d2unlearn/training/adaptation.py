"""Lets a method adapt itself while it trains, and keeps in every checkpoint where it stands: a resumed run goes on alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, Protocol

from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from d2unlearn.methods import AdaptiveMethod, Method


class TrainsByMethod(Protocol):
    """What `Adaptation` needs of a trainer: the method, which it replaces, and an accelerator to sum over processes."""

    method: Method
    accelerator: Any


class Adaptation(TrainerCallback, ExportableState):
    """After each optimizer step and epoch, replaces the trainer's method by what it makes of the means that it monitors.

    Its state (the method's fields, the epoch's sums so far) is part of `trainer_state.json`.
    """

    def __init__(self, trainer: TrainsByMethod, steps_per_epoch: int) -> None:
        self._trainer = trainer
        self._steps_per_epoch = steps_per_epoch
        self._step: dict[str, Tensor] = {}
        self._epoch: dict[str, float] = {}

    def see(self, monitored: Mapping[str, Tensor]) -> None:
        """A micro-batch's share of the monitored means."""
        for name, value in monitored.items():
            self._step[name] = self._step.get(name, 0) + value.detach()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        attributes = state.stateful_callbacks[type(self).__name__]["attributes"]
        self._trainer.method = replace(self._method, **attributes["method"])
        self._epoch = dict(attributes["epoch"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Before the checkpoint of this step is written, so that it holds the method of the next."""
        epochs_done, left = divmod(state.global_step, self._steps_per_epoch)
        means = {name: float(self._trainer.accelerator.reduce(value, "sum")) for name, value in self._step.items()}
        self._step = {}
        self._epoch = {name: self._epoch.get(name, 0.0) + mean for name, mean in means.items()}
        method = self._method.after_step(means, epochs_done if left else epochs_done - 1)
        if not left:
            method = method.after_epoch({n: total / self._steps_per_epoch for n, total in self._epoch.items()}, epochs_done)
            self._epoch = {}
        self._trainer.method = method

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"method": asdict(self._method), "epoch": self._epoch}}

    @property
    def _method(self) -> Any:
        assert isinstance(self._trainer.method, AdaptiveMethod)
        return self._trainer.method
