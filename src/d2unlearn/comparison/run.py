"""`compare` from settings to results and pages; and a single run, which any scheduler can start by its key."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import yaml

from d2unlearn.artifact import DONE, first_rank
from d2unlearn.comparison.context import Bench
from d2unlearn.comparison.evaluating import judge
from d2unlearn.comparison.output import write_output
from d2unlearn.comparison.plan import Comparison, Run, awaited, comparison_of, find_run, needs_of, runs_of
from d2unlearn.comparison.records import ORACLE, ORIGINAL
from d2unlearn.comparison.scheduler import BACKENDS, Progress, carry_out, ended_by_sigterm
from d2unlearn.comparison.store import OTHERS, Store
from d2unlearn.comparison.tuning import tune
from d2unlearn.config import CompareSettings
from d2unlearn.errors import ArtifactError, ConfigError, D2Error
from d2unlearn.guards import GUARDS
from d2unlearn.methods import METHODS
from d2unlearn.runtime import atomic_write, check_writable, fingerprint, remove, say


def run_compare(settings: CompareSettings) -> Iterator[str]:
    """Do what is not done yet, then write tables, figures and pages of all that is; yields lines for a person.

    With `run`, only the run of that key; with `plan`, nothing is done and the runs are listed. Raises `ArtifactError` in the
    end when runs failed, after the tables of the others are written.
    """
    comparison = comparison_of(settings, methods=METHODS, guards=GUARDS)
    store = store_of(settings)
    if settings.plan:
        yield from listed(comparison, store)
        return
    check_writable(store.output)
    check_writable(store.results)
    if settings.run is not None:
        run_one(comparison, store, settings.run)
        yield str(store.results / f"{settings.run}.json")
        return
    _check_inputs(comparison, store)
    _check_done(comparison, store)
    file = _resolved(settings, store)
    backend = BACKENDS[settings.backend](settings, file, lambda key: run_one(comparison, store, key))
    with ended_by_sigterm():
        failed = carry_out(_progress(comparison, store), backend)
    yield from write_output(comparison, store)
    if failed:
        what = f"{len(failed)} run{'s' if len(failed) > 1 else ''} failed ({', '.join(failed)})"
        raise ArtifactError(f"{what}: see {store.output / 'logs'}; the same command goes on once that is mended")


def run_one(comparison: Comparison, store: Store, key: str) -> None:
    """Do a run, unless it is done. Raises `ClaimedError` while another process is at it, `ConfigError` before its time."""
    run = find_run(runs_of(comparison, scores_of(comparison, store)), key)
    bench = Bench(comparison, run, store)
    with store.claim(run):
        if store.is_done(run):
            if not bench.is_own(store.record(run)):
                raise ArtifactError(OTHERS.format(store.result(run)))
            if first_rank():
                say(DONE.format(store.result(run)))
            return
        missing = [need for need in needs_of(comparison, run) if not (store.results / f"{need}.json").is_file()]
        if missing:
            raise ConfigError([f"{key} needs the results of {', '.join(missing)}: run them first"])
        bench.check()
        record = tune(bench) if run.seed is None else judge(bench)
        if record is not None:
            store.keep(record)
            _clear(bench)


def _check_inputs(comparison: Comparison, store: Store) -> None:
    """Raises `ConfigError` with what every run of a split would fail by: files, models, too few rows."""
    mistakes = []
    for split in comparison.splits:
        for contestant in (ORIGINAL, ORACLE) if split.oracle is not None else (ORIGINAL,):
            bench = Bench(comparison, Run(split.name, contestant, "as_is", comparison.settings.seeds[0]), store)
            try:
                bench.check()
            except D2Error as error:
                mistakes.append(f"split {split.name}: {error}")
    if mistakes:
        raise ConfigError(list(dict.fromkeys(mistakes)))


def _check_done(comparison: Comparison, store: Store) -> None:
    """Raises `ArtifactError` where results are there that other inputs or settings made."""
    wrong = [
        str(store.result(run))
        for run in runs_of(comparison, scores_of(comparison, store))
        if store.is_done(run) and not Bench(comparison, run, store).is_own(store.record(run))
    ]
    if wrong:
        raise ArtifactError(OTHERS.format(", ".join(wrong)))


def scores_of(comparison: Comparison, store: Store) -> dict[str, float]:
    """The best score of every method's tuning that is done, by key."""
    runs = [Run(split.name, name, "method", None) for split in comparison.splits for name in METHODS]
    return {run.key: store.tuned(run).best.score for run in runs if store.is_done(run)}


def listed(comparison: Comparison, store: Store) -> Iterator[str]:
    """Every run and how it stands."""
    for run in runs_of(comparison, scores_of(comparison, store)):
        state = "done" if store.is_done(run) else "at work" if store.is_claimed(run) else "to do"
        yield f"{state:8s}{run.key}"
    scores = scores_of(comparison, store)
    for split in comparison.splits:
        if later := awaited(comparison, split, scores):
            yield f"later   {split.name}: {later}"


def store_of(settings: CompareSettings) -> Store:
    """The folders of a comparison."""
    output = Path(settings.output)
    return Store(output, output / "results" if settings.results is None else Path(settings.results))


def _progress(comparison: Comparison, store: Store) -> Progress:
    """How the work stands, looked up anew each time: other processes may be at it too."""

    def runs() -> list[Run]:
        return runs_of(comparison, scores_of(comparison, store))

    return Progress(
        runs=runs,
        is_done=store.is_done,
        is_claimed=store.is_claimed,
        needs=lambda run: needs_of(comparison, run),
    )


def _resolved(settings: CompareSettings, store: Store) -> Path:
    """The settings as a file that a run's command is given, named after its content. Splits stay in their order."""
    values = {key: value for key, value in asdict(settings).items() if value is not None}
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    path = store.output / "settings" / f"{fingerprint(text)[:12]}.yaml"
    atomic_write(path, text)
    return path


def _clear(bench: Bench) -> None:
    """Remove the run's work; with `keep_artifacts` the trained model goes to `artifacts/` first."""
    artifact = bench.workspace / "artifact"
    if bench.comparison.settings.keep_artifacts and artifact.is_dir():
        target = bench.store.output / "artifacts" / bench.run.key
        remove(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        artifact.rename(target)
    remove(bench.store.work(bench.run))
