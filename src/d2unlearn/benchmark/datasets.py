"""The rows of a benchmark's sets, from a folder or the hub."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from d2unlearn.benchmark.suites import SetSpec, Suite
from d2unlearn.config import BenchmarkSettings
from d2unlearn.data.lume import read_lume
from d2unlearn.data.muse import read_muse, with_shots
from d2unlearn.data.tofu import paraphrased, read_tofu
from d2unlearn.data.years import read_years
from d2unlearn.errors import DataError
from d2unlearn.runtime import say
from d2unlearn.schema import Example

REPHRASED = "paraphrased_question"


@dataclass(frozen=True)
class LoadedSet:
    """One set's rows. `missing`: why there are none."""

    name: str
    spec: SetSpec
    examples: tuple[Example, ...]
    missing: str = ""


def load_sets(suite: Suite, settings: BenchmarkSettings) -> list[LoadedSet]:
    """Every set of the suite, at most `limit` rows of each.

    The held-out rows, which only some data folders have, may be missing, and so may a kind of row in a file of several.
    Raises `DataError` for any other split that is, and for a row without a column that the suite asks for.
    """
    return [_loaded(name, spec, settings) for name, spec in suite.sets.items()]


def holdout_of(settings: BenchmarkSettings) -> str:
    """The name of the held-out split: as the settings say, else the one of the forget split's size (`holdout10`)."""
    size = "".join(character for character in settings.forget_split if character.isdigit())
    return settings.holdout_split or f"holdout{size}"


def _loaded(name: str, spec: SetSpec, settings: BenchmarkSettings) -> LoadedSet:
    split = spec.split.format(forget=settings.forget_split, holdout=holdout_of(settings))
    read = _READERS[settings.benchmark]
    try:
        examples = read(split, settings)
    except DataError as error:
        if spec.split != "{holdout}":
            raise
        say(f"no held-out rows, so no membership attacks: {error}")
        return LoadedSet(name, spec, (), f"there are no held-out rows ({split})")
    if not examples:
        return LoadedSet(name, spec, (), f"the folder has no rows of {split}")
    examples = _asked(spec, examples[: settings.limit], settings)
    if spec.shots:
        examples = with_shots(examples, read(spec.shots, settings))
    return LoadedSet(name, spec, tuple(examples))


def _asked(spec: SetSpec, examples: list[Example], settings: BenchmarkSettings) -> list[Example]:
    for example in examples:
        for column in spec.others:
            answers_in(example, column)
    return paraphrased(examples) if spec.rephrased and settings.question_key == REPHRASED else examples


def answers_in(example: Example, column: str) -> list[str]:
    """The answers in a further column, one or a list. Raises `DataError` when there are none."""
    value = example.extra.get(column)
    answers = [value] if isinstance(value, str) else value
    if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) and answer for answer in answers):
        raise DataError(f"{example.source}: {column} should be an answer or a list of answers, not {value!r:.40}")
    return answers


def _tofu(split: str, settings: BenchmarkSettings) -> list[Example]:
    return read_tofu(split, settings.data)


def _muse(split: str, settings: BenchmarkSettings) -> list[Example]:
    part, name = split.split("/")
    return read_muse(part, name, corpus=settings.corpus, folder=None if settings.data is None else Path(settings.data))


def _lume(split: str, settings: BenchmarkSettings) -> list[Example]:
    return read_lume(split, settings.data)


def _years(split: str, settings: BenchmarkSettings) -> list[Example]:
    return read_years(split, settings.data)


_READERS: Mapping[str, Callable[[str, BenchmarkSettings], list[Example]]] = {
    "tofu": _tofu,
    "muse": _muse,
    "lume": _lume,
    "years": _years,
}
