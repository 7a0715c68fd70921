"""What an unlearning method is: a frozen dataclass of its parameters, what it needs to see, and a pure loss."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, Self, get_args, get_origin, get_type_hints

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


class AttackInLoop(NamedTuple):
    """Attacks in the loop: a copy of the model is fine-tuned on a drawn share of the forget rows, and what it shows is used.

    steps: of AdamW, in batches of 8; rate: its learning rate, as a factor of the run's. restoring: another copy has a part of
    its matrices put back to the original's, another one each round; each copy is asked for a half of the forget rows.
    """

    share: float
    steps: int
    rate: float
    restoring: bool


class MinorStep(NamedTuple):
    """One step of the decoder's linear weights along minor directions (`d2unlearn.training.curvature`).

    size: its length as a share of these weights'; dropped: singular components left out; damping: of the retained rows' second
    moments, which are taken once, over at most `moment_rows` of them.
    """

    size: float
    dropped: int
    damping: float
    moment_rows: int


@dataclass(frozen=True)
class Hardening:
    """Training against an attacker who goes on all the while (`d2unlearn.training.hardening`).

    The attacked copy takes one step of AdamW on its rows before each of the model's, and then moves with the model. It lives
    for a drawn number of steps within `lives`, with a learning rate drawn within `attack_rates` (factors of the run's, evenly
    in the logarithm), on a drawn share of the forget rows.

    steps: of the model, in AdamW at `rate` (a factor of the run's); held: what it keeps to by itself; weight: of the squared
    excess over their cap, nats, of rows that the copy was not given, beside which stands the likelihood of retained rows;
    clips: lengths at which the gradient at the model and the one at the copy are cut; rest_steps: of healing afterwards.
    """

    steps: int
    rate: float
    share: float
    held: Method
    weight: float
    rest_steps: int
    attack_rates: tuple[float, float] = (1.0, 10 / 3)
    lives: tuple[int, int] = (5, 40)
    clips: tuple[float, float] = (1.0, 0.7)


class Deepening(NamedTuple):
    """What a method wants after its pass over the rows (`d2unlearn.training.deepening`): blocks of rounds, each with a rest.

    A round is an attack, a step from the weights as they were before it that undoes what it found, and `healing_steps` of
    `healing`; a rest is `rest_steps` of it. knowledge: what the step lowers, a method whose loss is made of the forget rows
    alone. healing_rate: AdamW's, as a factor of the run's; written: rows that the original writes itself beside the retained
    ones (`d2unlearn.training.crossed`). hardening: before the first block, with a rest of its own; between: after each block's
    rounds, before the block's rest. None: nothing.
    """

    blocks: int
    rounds: int
    attack: AttackInLoop
    step: MinorStep
    knowledge: Method
    healing: Method
    healing_steps: int
    rest_steps: int
    healing_rate: float
    written: int
    hardening: Hardening | None = None
    between: Hardening | None = None


class Allowed(NamedTuple):
    """Where a parameter must lie, in words and as a test. NaN passes none of the tests."""

    said: str
    holds: Callable[[float], bool]


POSITIVE = Allowed("be positive", lambda value: value > 0)
NOT_NEGATIVE = Allowed("not be negative", lambda value: value >= 0)
INSIDE_UNIT = Allowed("lie between 0 and 1", lambda value: 0 < value < 1)
FINITE = Allowed("be a positive number", lambda value: 0 < value < math.inf)
_ALLOWED = (POSITIVE, NOT_NEGATIVE, INSIDE_UNIT, FINITE)
Positive = Annotated[float, POSITIVE]
NotNegative = Annotated[float, NOT_NEGATIVE]
ConventionName = Literal["d2unlearn", "open-unlearning"]
"""Whose values a loss has where the two differ. docs/methods.md says what the differences are and measures them."""


class Method(ABC):
    """An unlearning method. Subclasses are frozen dataclasses; their fields, with their ranges, are the method's parameters."""

    def __post_init__(self) -> None:
        check_parameters(self)

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
    def deepening(self) -> Deepening | None:
        """What follows the pass over the rows; None: nothing."""
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


def check_parameters(method: Method) -> None:
    """Raises `ConfigError` naming every number out of its field's range and every choice that its field does not offer."""
    values, hints = vars(method), get_type_hints(type(method), include_extras=True)
    mistakes = [
        f"{name} must {allowed.said}, not {values[name]}"
        for allowed in _ALLOWED
        for name, hint in hints.items()
        if allowed in get_args(hint) and not allowed.holds(values[name])
    ]
    mistakes += [
        f"{name} should be {' or '.join(get_args(hint))}, not {values[name]!r}"
        for name, hint in hints.items()
        if get_origin(hint) is Literal and values[name] not in get_args(hint)
    ]
    if mistakes:
        raise ConfigError(mistakes)
