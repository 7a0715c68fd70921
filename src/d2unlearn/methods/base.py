"""What an unlearning method is: a frozen dataclass of its parameters, what it needs to see, and a pure loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Self, get_args, get_origin, get_type_hints

from torch import Tensor, nn

from d2unlearn.errors import ConfigError
from d2unlearn.observation import Observed
from d2unlearn.positions import Positions, Predicting
from d2unlearn.quantities import Observable
from d2unlearn.schema import Role


class Needs(NamedTuple):
    """What a method reads of one role: quantities of the model in training and of the frozen reference, and where."""

    policy: tuple[Observable, ...] = ()
    reference: tuple[Observable, ...] = ()
    positions: Positions = Predicting()


class SelfWritten(NamedTuple):
    """How the model itself writes alternate answers before training: of `samples` drawn, the one least like the true answer.

    `instruction`: what a model that follows instructions is told, with {question} and {answer}; None asks it the bare question.
    """

    samples: int
    temperature: float
    instruction: str | None


class Method(ABC):
    """An unlearning method. Subclasses are frozen dataclasses; their fields are the method's parameters."""

    @property
    @abstractmethod
    def needs(self) -> Mapping[Role, Needs]:
        """Roles of the data that the method reads, and what it reads at their positions."""

    @abstractmethod
    def loss(self, batch: Mapping[Role, Observed]) -> Tensor:
        """The scalar to minimise. Pure: no model, no device, no state. Zero (not NaN) for a batch without answers."""

    def monitor(self, batch: Mapping[Role, Observed]) -> Mapping[str, Tensor]:
        """Scalars worth watching, each this batch's share of a mean (`Observed.mean`). None unless a method has some."""
        return {}

    def for_model(self, model: nn.Module) -> Method:
        """The method with what depends on the model filled in and checked (which layer, say). Itself unless overridden."""
        return self

    def trains(self, parameter: str) -> bool:
        """Whether the parameter of this name (as in `model.named_parameters()`) is trained. Every one unless overridden."""
        return True

    @property
    def self_written(self) -> SelfWritten | None:
        """How the model writes the rows of role `alternate`; None: they are refusals."""
        return None

    @property
    def refuses_in_words(self) -> bool:
        """Whether refusals are taught as answers; all other methods leave refusing to the gate."""
        return "alternate" in self.needs and self.self_written is None


class AdaptiveMethod(Method):
    """A method that changes its own parameters while it trains: what changes is a field, so its fields are its state.

    `means` are the monitored scalars over the effective batch, or over the epoch's steps.
    """

    @abstractmethod
    def after_step(self, means: Mapping[str, float], epochs_done: int) -> Self:
        """The method for the next step. `epochs_done`: epochs completed before this step."""

    @abstractmethod
    def after_epoch(self, means: Mapping[str, float], epochs_done: int) -> Self:
        """The method for the next epoch. `epochs_done` counts the one that ends."""


def check_parameters(method: Method, *, positive: Sequence[str] = (), not_negative: Sequence[str] = ()) -> None:
    """Raises `ConfigError` naming every number out of range and every choice that its field does not offer."""
    values = vars(method)
    mistakes = [f"{name} must be positive, not {values[name]}" for name in positive if not values[name] > 0]
    mistakes += [f"{name} must not be negative, not {values[name]}" for name in not_negative if not values[name] >= 0]
    for name, offered in _choices(type(method)).items():
        if values[name] not in offered:
            mistakes.append(f"{name} should be {' or '.join(offered)}, not {values[name]!r}")
    if mistakes:
        raise ConfigError(mistakes)


def _choices(kind: type[Any]) -> dict[str, tuple[str, ...]]:
    return {name: get_args(hint) for name, hint in get_type_hints(kind).items() if get_origin(hint) is Literal}
