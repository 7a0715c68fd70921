"""Remove knowledge from a language model, let it refuse what was removed, and prove both.

The public names are loaded when they are first used, so that `d2unlearn --help` does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from d2unlearn.version import __version__ as __version__

if TYPE_CHECKING:
    from d2unlearn.data.holdout import hold_out
    from d2unlearn.data.records import read_examples
    from d2unlearn.energy import centred_energy, free_energy, reference_margins
    from d2unlearn.gate import EnergyGate
    from d2unlearn.generation.guarded import GuardedModel
    from d2unlearn.methods import METHODS
    from d2unlearn.training.arguments import UnlearnConfig
    from d2unlearn.training.trainer import UnlearnTrainer

__all__ = [
    "METHODS",
    "EnergyGate",
    "GuardedModel",
    "UnlearnConfig",
    "UnlearnTrainer",
    "centred_energy",
    "free_energy",
    "hold_out",
    "read_examples",
    "reference_margins",
]

_HOME = {
    "METHODS": "d2unlearn.methods",
    "EnergyGate": "d2unlearn.gate",
    "GuardedModel": "d2unlearn.generation.guarded",
    "UnlearnConfig": "d2unlearn.training.arguments",
    "UnlearnTrainer": "d2unlearn.training.trainer",
    "centred_energy": "d2unlearn.energy",
    "free_energy": "d2unlearn.energy",
    "hold_out": "d2unlearn.data.holdout",
    "read_examples": "d2unlearn.data.records",
    "reference_margins": "d2unlearn.energy",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'd2unlearn' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
