"""What can go wrong by no fault of the program: each message says what was given, what was expected, and what to do.

The command line prints the message of any `D2Error` as one sentence and ends with exit code 2, without a traceback.
"""

from __future__ import annotations


class D2Error(Exception):
    """Base of every error that a person can mend."""


class ConfigError(D2Error):
    """A configuration that cannot be run. Holds every mistake found, not only the first."""

    def __init__(self, mistakes: list[str]) -> None:
        self.mistakes = mistakes
        super().__init__("; ".join(mistakes))


class DataError(D2Error):
    """A file or data set that cannot be read as asked; names the file and the line."""


class ModelError(D2Error):
    """A model folder that is missing, has no causal head, or whose logits this package cannot reproduce."""


class GateError(D2Error):
    """A gate that is missing, belongs to other weights, or cannot be calibrated from what was given."""


class ArtifactError(D2Error):
    """An output folder that holds something else, or cannot be written."""
