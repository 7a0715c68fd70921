"""`compare` from settings to results and pages; and a single run, which any scheduler can start by its key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml

from d2unlearn.artifact import DONE
from d2unlearn.comparison.context import RunContext
from d2unlearn.comparison.entries import is_offered_entry
from d2unlearn.comparison.evaluating import evaluate_run
from d2unlearn.comparison.output import known_runs, tuning_scores, write_output
from d2unlearn.comparison.plan import Comparison, awaited, comparison_of, find_run, needs_of
from d2unlearn.comparison.scheduler import Progress, backend_of, ended_by_sigterm, run_all
from d2unlearn.comparison.store import OTHERS, Store, is_comparison
from d2unlearn.comparison.tuning import tune
from d2unlearn.config import CompareSettings
from d2unlearn.errors import ArtifactError, ConfigError, D2Error
from d2unlearn.guards import GUARDS
from d2unlearn.methods import METHODS
from d2unlearn.outputs import kept_settings, output_place
from d2unlearn.runtime import atomic_write, fingerprint, first_rank, now, read_json, remove, said_if_long, say, write_json
from d2unlearn.schema import MANIFEST_FILE
from d2unlearn.version import __version__

COMMAND = "compare"


def run_compare(settings: CompareSettings) -> Iterator[str]:
    """Do what is not done yet, then write tables, figures and pages of all that is; yields lines for a person.

    With `run`, only the run of that key; with `plan`, nothing is done and the runs are listed. Raises `ArtifactError` in the
    end when runs failed, after the tables of the others are written.
    """
    comparison = comparison_of(settings, methods=METHODS, guards=GUARDS, is_offered=is_offered_entry)
    store = store_of(settings)
    if settings.plan:
        yield from listed(comparison, store)
        return
    _claim_folder(store, force=settings.force)
    if settings.run is not None:
        run_one(comparison, store, settings.run)
        yield str(store.results / f"{settings.run}.json")
        return
    _check_inputs(comparison, store)
    _check_done(comparison, store)
    backend = backend_of(settings, _resolved(settings, store), lambda key: run_one(comparison, store, key))
    progress = Progress(
        runs=lambda: known_runs(comparison, store),
        is_done=store.is_done,
        is_claimed=store.is_claimed,
        needs=lambda run: needs_of(comparison, run),
    )
    with ended_by_sigterm():
        failed = run_all(progress, backend)
    with said_if_long("drawing tables and pages"):
        written = list(write_output(comparison, store))
    yield from written
    if failed:
        what = f"{len(failed)} run{'s' if len(failed) > 1 else ''} failed ({', '.join(failed)})"
        raise ArtifactError(f"{what}: see {store.output / 'logs'}; the same command goes on once that is mended")


def run_one(comparison: Comparison, store: Store, key: str) -> None:
    """Do a run, unless it is done. Raises `ClaimedError` while another process is at it, `ConfigError` before its time."""
    run = find_run(known_runs(comparison, store), key)
    context = RunContext(comparison, run, store)
    with store.claim(run):
        if store.is_done(run):
            if store.result(run).identity == context.identity:
                if first_rank():
                    say(DONE.format(store.path(run)))
                return
            if not comparison.settings.force:
                raise ArtifactError(OTHERS.format(store.path(run)))
        missing = [need for need in needs_of(comparison, run) if not (store.results / f"{need}.json").is_file()]
        if missing:
            raise ConfigError([f"{key} needs the results of {', '.join(missing)}: run them first"])
        context.check()
        result = tune(context) if run.seed is None else evaluate_run(context)
        if result is not None:
            store.keep(result)
            _clear(context)


def _claim_folder(store: Store, *, force: bool) -> None:
    """Say whose folder it is. Raises `ArtifactError` where something else stands in it, unless with `force`."""
    note, output = store.output / MANIFEST_FILE, store.output
    if output.exists() and not output.is_dir():
        raise ArtifactError(f"{output} exists and is not a folder; choose another --output")
    if note.is_file() and read_json(note).get("command") == COMMAND:
        return
    if not force and output.is_dir() and any(output.iterdir()) and not is_comparison(output):
        raise ArtifactError(f"{output} is not empty, and no comparison made it; give --force to write there, or choose another")
    write_json(note, {"command": COMMAND, "made": now(), "version": __version__})


def _check_inputs(comparison: Comparison, store: Store) -> None:
    """Raises `ConfigError` with what every run of a split would fail by: files, models, too few rows."""
    mistakes = []
    for run in known_runs(comparison, store):
        if run.kind == "as_is":
            try:
                RunContext(comparison, run, store).check()
            except D2Error as error:
                mistakes.append(f"split {run.split}: {error}")
    if mistakes:
        raise ConfigError(list(dict.fromkeys(mistakes)))


def _check_done(comparison: Comparison, store: Store) -> None:
    """Raises `ArtifactError` where results are there that other inputs or settings made; with `force` these go."""
    wrong = [
        store.path(run)
        for run in known_runs(comparison, store)
        if store.is_done(run) and store.result(run).identity != RunContext(comparison, run, store).identity
    ]
    if wrong and not comparison.settings.force:
        raise ArtifactError(OTHERS.format(", ".join(map(str, wrong))))
    for path in wrong:
        path.unlink()


def listed(comparison: Comparison, store: Store) -> Iterator[str]:
    """Every run and how it stands."""
    for run in known_runs(comparison, store):
        state = "done" if store.is_done(run) else "at work" if store.is_claimed(run) else "to do"
        yield f"{state:8s}{run.key}"
    scores = tuning_scores(comparison, store)
    for split in comparison.splits:
        if later := awaited(comparison, split, scores):
            yield f"later   {split.name}: {later}"


def store_of(settings: CompareSettings) -> Store:
    """The folders of a comparison."""
    output = output_place(settings.output)
    return Store(output, output / "results" if settings.results is None else output_place(settings.results))


def _resolved(settings: CompareSettings, store: Store) -> Path:
    """The settings as a file that a run's command is given, named after its content. Splits stay in their order."""
    values = {key: value for key, value in kept_settings(settings).items() if value is not None}
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    path = store.output / "settings" / f"{fingerprint(text)[:12]}.yaml"
    atomic_write(path, text)
    return path


def _clear(context: RunContext) -> None:
    """Remove the run's work; with `keep_artifacts` the trained model goes to `artifacts/` first."""
    artifact = context.workspace / "artifact"
    if context.settings.keep_artifacts and artifact.is_dir():
        target = context.store.output / "artifacts" / context.run.key
        remove(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        artifact.rename(target)
    remove(context.store.work(context.run))
