# Made from d2unlearn/errors.py by d2unlearn 0.1.0. Calibration writes it again.
from __future__ import annotations


class D2Error(Exception):
    """Base of every error that a person can mend."""


class ConfigError(D2Error):
    """A configuration that cannot be run. Holds every mistake found, not only the first."""

    def __init__(self, mistakes: list[str]) -> None:
        self.mistakes = mistakes
        super().__init__("; ".join(mistakes))


class ModelError(D2Error):
    """A model folder that is missing, has no causal head, or whose logits this package cannot reproduce."""


class GateError(D2Error):
    """A gate that is missing, belongs to other weights, or cannot be calibrated from what was given."""
