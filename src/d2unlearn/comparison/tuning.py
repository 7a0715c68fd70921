"""The tuning of one entry on one split: trials one after another, each kept as soon as it is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from accelerate import PartialState

from d2unlearn.artifact import versions
from d2unlearn.comparison.context import RunContext
from d2unlearn.comparison.cost import machine
from d2unlearn.comparison.entries import base_rate, behind, defaults, load_raw, unlearn_settings
from d2unlearn.comparison.objective import Means, best_trial, guarded_rouge, knowledge, validation_score
from d2unlearn.comparison.records import Trial, TuningResult
from d2unlearn.comparison.search import next_parameters, trials_of
from d2unlearn.evaluation.runner import Answers
from d2unlearn.runtime import first_rank, read_json, remove, say, write_json
from d2unlearn.schema import Example
from d2unlearn.serialization import record_from_json, record_to_json
from d2unlearn.training.unlearn import DestroyedModelError, run_unlearn

Attempt = Callable[[Mapping[str, float], Path], tuple[Means, Means] | None]
"""Parameters and a folder to work in -> metrics on forgotten and retained validation rows; None on ranks that measure nothing.
Raises `DestroyedModelError` when there is nothing to measure.
"""


def tune(context: RunContext) -> TuningResult | None:
    """All trials, going on after those that an interrupted run made. None on every rank but the first."""
    before, attempt = (_method if context.run.kind == "method" else _guard)(context)
    start, count = defaults(context), trials_of(context.space, context.settings.trials)
    while len(trials := _done(context)) < count:
        parameters = next_parameters(context.space, start, trials, context.seed)
        trial = _tried(context, len(trials), parameters, before, attempt)
        if trial is not None:
            write_json(_file(context, trial.number), record_to_json(trial, "trial"))
            say(f"{context.run.key}: trial {trial.number + 1} of {count}, score {trial.score:.4f}")
        PartialState().wait_for_everyone()
    if not first_rank():
        return None
    return TuningResult(
        key=context.run.key,
        identity=context.identity,
        split=context.run.split,
        contestant=context.run.entry,
        kind=context.run.kind,
        seed=context.seed,
        trials=tuple(trials),
        chosen=best_trial([trial.score for trial in trials]),
        before=before,
        n_forget=len(context.questions.validation),
        n_retain=len(context.held_out.validation),
        machine=machine(),
        versions=versions() | context.origin,
    )


def _tried(context: RunContext, number: int, parameters: Mapping[str, float], before: Means, attempt: Attempt) -> Trial | None:
    folder, started = context.workspace / f"trial-{number}", time.monotonic()
    try:
        measured = attempt(parameters, folder)
    except DestroyedModelError as error:
        return Trial(number, parameters, 0.0, {}, time.monotonic() - started, str(error)) if first_rank() else None
    if measured is None:
        return None
    remove(folder)
    forget, retain = measured
    named = {
        f"{side}_{name}": value for side, means in (("forget", forget), ("retain", retain)) for name, value in means.items()
    }
    return Trial(number, parameters, validation_score(forget, retain, before), named, time.monotonic() - started)


def _method(context: RunContext) -> tuple[Means, Attempt]:
    size, rate = context.settings.eval_batch_size, base_rate(context)
    forget, retain = context.questions.validation, context.held_out.validation

    def attempt(parameters: Mapping[str, float], folder: Path) -> tuple[Means, Means] | None:
        artifact = run_unlearn(unlearn_settings(context, parameters, rate, folder))
        if not first_rank():
            return None
        made = load_raw(artifact, context.settings.dtype)
        return knowledge(made, forget, batch_size=size), knowledge(made, retain, batch_size=size)

    return knowledge(load_raw(context.original, context.settings.dtype), retain, batch_size=size), attempt


def _guard(context: RunContext) -> tuple[Means, Attempt]:
    base = load_raw(context.original, context.settings.dtype)
    forget, retain = context.questions.validation, context.held_out.validation

    def rouge(answers: Answers, rows: Sequence[Example], *, raw: bool = False) -> Means:
        size, limit = context.settings.eval_batch_size, context.settings.max_new_tokens
        return guarded_rouge(answers, rows, batch_size=size, max_new_tokens=limit, raw=raw)

    def attempt(parameters: Mapping[str, float], folder: Path) -> tuple[Means, Means]:
        made = behind(context, base, parameters)
        return rouge(made, forget), rouge(made, retain)

    return rouge(base, retain, raw=True), attempt


def _file(context: RunContext, number: int) -> Path:
    return context.workspace / f"trial-{number}.json"


def _done(context: RunContext) -> list[Trial]:
    """The trials that are kept, from the first on without a gap."""
    trials: list[Trial] = []
    while (path := _file(context, len(trials))).is_file():
        trials.append(record_from_json(Trial, read_json(path), str(path), "a trial", "remove it"))
    return trials
