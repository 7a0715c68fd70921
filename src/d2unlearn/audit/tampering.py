"""Moved: `d2unlearn.attacks.relearning`. This name stays for one version."""

from __future__ import annotations

import warnings
from typing import Any

from d2unlearn.attacks import relearning

RENAMED = {"Comeback": "RelearningResult"}


def __getattr__(name: str) -> Any:
    """What the module had, with a `DeprecationWarning`."""
    value = getattr(relearning, RENAMED.get(name, name))
    warnings.warn(f"d2unlearn.audit.tampering is d2unlearn.attacks.relearning now: {name}", DeprecationWarning, stacklevel=2)
    return value
