"""What a run works on: the split's questions, divided and written to files that the other verbs read, and its identity."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

from d2unlearn.comparison.plan import Comparison, Run, Split, reads_logs
from d2unlearn.comparison.questions import HeldOutRows, SplitQuestions, divide, held_out_rows
from d2unlearn.comparison.records import RETAIN_MODEL
from d2unlearn.comparison.search import Space
from d2unlearn.comparison.store import Store
from d2unlearn.config import CompareSettings
from d2unlearn.data.records import content_hash, read_examples
from d2unlearn.errors import ConfigError, ModelError
from d2unlearn.gguf import is_gguf
from d2unlearn.guards import GUARD_FAMILY
from d2unlearn.methods import METHOD_FAMILY
from d2unlearn.models import weights_name
from d2unlearn.plugins import plugin_origin
from d2unlearn.runtime import atomic_write, fingerprint
from d2unlearn.schema import GATE_FILE, Example, Kind
from d2unlearn.stats import conformal_rank

_FORMAT = 1
"""Raised when runs done before should be done again though nothing of what they were given has changed."""
_OF_ALL = ("dtype", "test_rows", "max_new_tokens", "attack_learning_rate")
_OF_TUNED = (
    *("trials", "learning_rate", "epochs", "batch_size", "accumulation", "max_length", "lora", "lora_rank", "bf16"),
    *("gradient_checkpointing", "max_false_refusal"),
)
_OF_EVALUATED = ("wording_rows",)
"""Settings that all results depend on, and those of entries that are tuned; data, weights, seeds and spaces come on top.

The last are of evaluated weights, where they are not the default: older results, made without them, stay done.
"""


@dataclass(frozen=True)
class RunContext:
    """A run and all that it works on."""

    comparison: Comparison
    run: Run
    store: Store

    @property
    def settings(self) -> CompareSettings:
        return self.comparison.settings

    @property
    def split(self) -> Split:
        return self.comparison.split(self.run.split)

    @property
    def space(self) -> Space:
        return self.comparison.spaces[self.run.entry]

    @property
    def workspace(self) -> Path:
        """Where it is done: nothing that an earlier run with other inputs left there is taken up."""
        return self.store.work(self.run) / self.identity[:12]

    @property
    def seed(self) -> int:
        """The run's seed; a tuning's is the first of the comparison."""
        return self.settings.seeds[0] if self.run.seed is None else self.run.seed

    @property
    def original(self) -> str:
        """The model to unlearn."""
        return self.split.model or self.settings.model

    @property
    def as_is_model(self) -> str:
        """The folder of the original or of the retain model."""
        return str(self.split.oracle) if self.run.entry == RETAIN_MODEL else self.original

    @property
    def forget_split(self) -> str:
        return self.split.forget_split or self.split.name

    @cached_property
    def questions(self) -> SplitQuestions:
        """The split's questions. Raises `DataError` for files that cannot be read or hold too little."""
        split = self.split
        named: list[tuple[str, Kind, str]] = [(name, "forget", file) for name, file in split.also_forget.items()]
        named += [(name, "retain", file) for name, file in split.also_retain.items()]
        further = tuple((name, kind, _stamped(file)) for name, kind, file in named)
        return _divided(_stamped(split.forget), _stamped(split.retain), further, split.group_size, self.settings.test_rows)

    @cached_property
    def held_out(self) -> HeldOutRows:
        return held_out_rows(self.questions, self.seed)

    @cached_property
    def files(self) -> Mapping[str, Path]:
        """The rows as files: forget, validation, retain, and test sets under `test/NAME`; written where they are missing."""
        questions = self.questions
        sets: dict[str, Iterable[Example]] = {f"test/{test.name}": test.examples for test in questions.tests}
        sets |= {"forget": questions.forget, "validation": questions.validation, "retain": questions.retain}
        return {name: _write_once(self._data / f"{name}.jsonl", map(_line, rows)) for name, rows in sets.items()}

    @cached_property
    def benchmark_data(self) -> Path:
        """The benchmark's files without what answers a validation question of the forget split."""
        answers = {row.answer for row in self.questions.validation}
        source, folder = Path(str(self.split.data)), self._data / "benchmark"
        wanted = (f"{self.forget_split}_perturbed", "retain_perturbed", "real_authors_perturbed", "world_facts_perturbed")
        for file in sorted([*source.glob("*.json"), *source.glob("*.jsonl")]):
            if file.stem in wanted or file.stem.startswith("holdout"):
                lines = file.read_text(encoding="utf-8").splitlines()
                kept = [line for line in lines if line.strip() and json.loads(line).get("answer") not in answers]
                _write_once(folder / f"{file.stem}.jsonl", kept)
        if not folder.is_dir():
            raise ConfigError([f"split {self.split.name}: {self.split.data} holds no files of the benchmark"])
        return folder

    @property
    def _data(self) -> Path:
        return self.store.output / "data" / self.split.name

    @cached_property
    def identity(self) -> str:
        """What the run's result depends on, whatever folder things stand in."""
        questions, settings = self.questions, asdict(self.settings)
        rows = [questions.forget, questions.validation, questions.retain, *(test.examples for test in questions.tests)]
        names = [[test.name, test.kind] for test in questions.tests]
        needs_retain_model = self.run.entry == RETAIN_MODEL or reads_logs(self.split, self.run)
        weights = [_weights(self.original), _weights(str(self.split.oracle)) if needs_retain_model else None]
        chosen = {key: settings[key] for key in _OF_ALL}
        if self.run.kind != "as_is":
            chosen |= {key: settings[key] for key in _OF_TUNED} | {"seed": settings["seeds"][0], "space": asdict(self.space)}
        if self.run.seed is not None and self.run.kind != "guard":
            chosen |= {key: settings[key] for key in _OF_EVALUATED if settings[key] != getattr(CompareSettings, key)}
        content = [[content_hash(row) for row in some] for some in rows]
        origin = [self.origin] if self.origin else []
        return fingerprint([_FORMAT, self.run.key, content, names, weights, self.split.benchmark, chosen, *origin])

    @property
    def origin(self) -> dict[str, str]:
        """{distribution: version} of another package's method or guard; empty for our own entries."""
        families = {"method": METHOD_FAMILY, "guard": GUARD_FAMILY}
        return plugin_origin(families[self.run.kind], self.run.entry) if self.run.kind in families else {}

    def check(self) -> None:
        """Raises the error that the run would end in sooner or later: of files, of weights, of too few rows."""
        conformal_rank(len(self.held_out.calibration), self.settings.max_false_refusal)
        _weights(self.as_is_model)
        gate = Path(self.as_is_model) / GATE_FILE
        if self.run.kind == "as_is" and gate.is_file():
            raise ConfigError([f"{gate}: original and retain model are evaluated without a gate; name a folder without one"])


def _line(example: Example) -> str:
    """An example as the columns that it is read from."""
    group = {} if example.group is None else {"group": example.group}
    if not example.prompt:
        return json.dumps({"text": example.answer, **group}, ensure_ascii=False)
    turns = [{"role": turn.role, "content": turn.content} for turn in example.prompt]
    return json.dumps({"prompt": turns, "completion": example.answer, **group}, ensure_ascii=False)


def _write_once(path: Path, lines: Iterable[str]) -> Path:
    """The file with these lines; left as it is where it holds them already."""
    text = "".join(f"{line}\n" for line in lines)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        atomic_write(path, text)
    return path


class _Stamped(NamedTuple):
    """A file or folder, and when it was changed: what was read of it before holds as long as this is the same."""

    path: str
    changed: tuple[int, ...]


def _stamped(name: str) -> _Stamped:
    path = Path(name)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    return _Stamped(name, tuple(file.stat().st_mtime_ns for file in files if file.exists()))


@lru_cache(maxsize=8)
def _divided(
    forget: _Stamped,
    retain: _Stamped,
    further: tuple[tuple[str, Kind, _Stamped], ...],
    group_size: int | None,
    test_rows: int,
) -> SplitQuestions:
    return divide(
        read_examples(forget.path, group_size=group_size),
        read_examples(retain.path, group_size=group_size),
        {name: (kind, read_examples(file.path, group_size=group_size)) for name, kind, file in further},
        test_rows=test_rows,
    )


def _weights(model: str) -> str:
    """`weights_name`, read once for all runs. Raises `ModelError` for a folder that is not there."""
    if not Path(model).is_dir() and not is_gguf(model) and (model.startswith((".", "/", "~")) or model.count("/") > 1):
        raise ModelError(f"{model} is not a folder; a comparison takes model folders or names on the hub")
    return _named(_stamped(model))


@lru_cache(maxsize=8)
def _named(model: _Stamped) -> str:
    return weights_name(model.path)
