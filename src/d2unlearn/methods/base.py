"""What an unlearning method is: a frozen dataclass of its parameters, what it needs to see, and a pure loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from d2unlearn.observation import Observed
from d2unlearn.quantities import Observable
from d2unlearn.schema import Role


class Needs(NamedTuple):
    """The quantities of one role that a method reads: of the model in training, and of the frozen reference."""

    policy: tuple[Observable, ...] = ()
    reference: tuple[Observable, ...] = ()


class Method(ABC):
    """An unlearning method. Subclasses are frozen dataclasses; their fields are the method's parameters."""

    @property
    @abstractmethod
    def needs(self) -> Mapping[Role, Needs]:
        """Roles of the data that the method reads, and what it reads at their answer positions."""

    @abstractmethod
    def loss(self, batch: Mapping[Role, Observed]) -> Tensor:
        """The scalar to minimise. Pure: no model, no device, no state. Zero (not NaN) for a batch without answers."""

    def monitor(self, batch: Mapping[Role, Observed]) -> Mapping[str, Tensor]:
        """Scalars worth watching, each this batch's share of a mean (`Observed.mean`). None unless a method has some."""
        return {}
