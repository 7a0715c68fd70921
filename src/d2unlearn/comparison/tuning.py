"""The tuning of one contestant on one split: trials one after another, each kept as soon as it is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from d2unlearn.artifact import first_rank, versions
from d2unlearn.comparison.context import Bench
from d2unlearn.comparison.cost import machine
from d2unlearn.comparison.entries import base_rate, behind, defaults, load_raw, unlearn_settings
from d2unlearn.comparison.measuring import Means, knowledge, told
from d2unlearn.comparison.objective import best_trial, validation_score
from d2unlearn.comparison.records import Trial, Tuned
from d2unlearn.comparison.search import next_parameters, trials_of
from d2unlearn.runtime import read_json, remove, say, write_json
from d2unlearn.serialization import record_from_json, record_to_json
from d2unlearn.training.unlearn import DestroyedModelError, run_unlearn

Attempt = Callable[[Mapping[str, float], Path], tuple[Means, Means] | None]
"""Parameters and a folder to work in -> metrics on forgotten and retained validation rows; None on ranks that measure nothing.
Raises `DestroyedModelError` when there is nothing to measure.
"""


def tune(bench: Bench) -> Tuned | None:
    """All trials, going on after those that an interrupted run made. None on every rank but the first."""
    before, attempt = (_method if bench.run.kind == "method" else _guard)(bench)
    start = defaults(bench)
    count = trials_of(bench.space, bench.comparison.settings.trials)
    trials = _done(bench)
    while len(trials) < count:
        parameters = next_parameters(bench.space, start, trials, bench.seed)
        trial = _tried(bench, len(trials), parameters, before, attempt)
        if trial is not None:
            write_json(_file(bench, trial.number), record_to_json(trial, "trial"))
            say(f"{bench.run.key}: trial {trial.number + 1} of {count}, score {trial.score:.4f}")
        wait_for_all()
        trials = _done(bench)
    if not first_rank():
        return None
    return Tuned(
        key=bench.run.key,
        identity=bench.identity,
        split=bench.run.split,
        contestant=bench.run.contestant,
        kind=bench.run.kind,
        seed=bench.seed,
        trials=tuple(trials),
        chosen=best_trial([trial.score for trial in trials]),
        before=before,
        n_forget=len(bench.questions.validation),
        n_retain=len(bench.held_out.validation),
        machine=machine(),
        versions=versions(),
    )


def wait_for_all() -> None:
    """Every rank goes on when all have come here."""
    from accelerate import PartialState

    PartialState().wait_for_everyone()


def _tried(bench: Bench, number: int, parameters: dict[str, float], before: Means, attempt: Attempt) -> Trial | None:
    folder, started = bench.workspace / f"trial-{number}", time.monotonic()
    try:
        found = attempt(parameters, folder)
    except DestroyedModelError as error:
        return Trial(number, parameters, 0.0, {}, time.monotonic() - started, str(error)) if first_rank() else None
    if found is None:
        return None
    remove(folder)
    forget, retain = found
    measured = {f"{side}_{name}": value for side, means in zip(("forget", "retain"), found, strict=True)
                for name, value in means.items()}  # fmt: skip
    return Trial(number, parameters, validation_score(forget, retain, before), measured, time.monotonic() - started)


def _method(bench: Bench) -> tuple[Means, Attempt]:
    size = bench.comparison.settings.eval_batch_size
    rate = base_rate(bench)
    before = knowledge(load_raw(bench, bench.original), bench.held_out.validation, batch_size=size)

    def attempt(parameters: Mapping[str, float], folder: Path) -> tuple[Means, Means] | None:
        artifact = run_unlearn(unlearn_settings(bench, parameters, rate, folder))
        if not first_rank():
            return None
        made = load_raw(bench, artifact)
        rows = (bench.questions.validation, bench.held_out.validation)
        forget, retain = (knowledge(made, each, batch_size=size) for each in rows)
        return forget, retain

    return before, attempt


def _guard(bench: Bench) -> tuple[Means, Attempt]:
    settings, base = bench.comparison.settings, load_raw(bench, bench.original)
    size, limit = settings.eval_batch_size, settings.max_new_tokens
    before = told(base, bench.held_out.validation, batch_size=size, max_new_tokens=limit, raw=True)

    def attempt(parameters: Mapping[str, float], folder: Path) -> tuple[Means, Means]:
        made = behind(bench, base, parameters)
        rows = (bench.questions.validation, bench.held_out.validation)
        forget, retain = (told(made, each, batch_size=size, max_new_tokens=limit) for each in rows)
        return forget, retain

    return before, attempt


def _file(bench: Bench, number: int) -> Path:
    return bench.workspace / f"trial-{number}.json"


def _done(bench: Bench) -> list[Trial]:
    """The trials that are kept, from the first on without a gap."""
    found: list[Trial] = []
    while (path := _file(bench, len(found))).is_file():
        found.append(record_from_json(Trial, read_json(path), str(path), "a trial", "remove it"))
    return found
