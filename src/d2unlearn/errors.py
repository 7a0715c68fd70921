"""What can go wrong by no fault of the program: each message says what was given, what was expected, and what to do.

The command line prints the message of any `D2Error` as one sentence and ends with exit code 2, without a traceback.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

NO_MEMORY = ("out of memory", "not enough memory", "allocate memory", "unable to allocate", "bad_alloc", "std::bad_array_new")
"""Words of the libraries where an allocation was turned down; each has a type of error of its own for it, or none."""


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


@contextmanager
def border(kind: type[D2Error], failed: str) -> Iterator[None]:
    """Around what other libraries do: whatever they raise becomes a `kind` that says what `failed`, and why.

    Our own errors go through as they are, and so does a lack of memory, which has a remedy of its own.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, D2Error) or out_of_memory(error):
            raise
        raise kind(f"{failed}: {reason_of(error)}") from error


@contextmanager
def needs_extra(name: str) -> Iterator[None]:
    """Around the import of what only `pip install d2unlearn[NAME]` brings. Raises `ConfigError` where it is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if str(error.name).startswith("d2unlearn"):
            raise
        missing = f"{error.name} is not installed; this command needs it: pip install 'd2unlearn[{name}]'"
        raise ConfigError([missing]) from None


def reason_of(error: BaseException) -> str:
    """The first line of what an error says, after its type where that alone tells what is meant."""
    said = next((line.strip().rstrip(":") for line in str(error).splitlines() if line.strip()), "")
    telling = isinstance(error, KeyError | TypeError | AttributeError | AssertionError | IndexError)
    return f"{type(error).__name__}: {said}" if telling and said else said or type(error).__name__


def out_of_memory(error: BaseException | None) -> bool:
    """Whether a lack of memory is behind an error, on a CPU or an accelerator, whichever library met it."""
    while error is not None:
        named = type(error).__name__ in ("OutOfMemoryError", "MemoryError")
        if named or (isinstance(error, RuntimeError | OSError) and any(words in str(error).lower() for words in NO_MEMORY)):
            return True
        error = error.__cause__ or error.__context__
    return False
