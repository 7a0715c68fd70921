"""What the command line does, from Python: one function a command, each of its settings.

    from d2unlearn.commands import UnlearnSettings, calibrate, evaluate, unlearn

    artifact = unlearn(UnlearnSettings("./model", "forget.jsonl", "retain.jsonl", output="./artifact"))

Settings are the command's options with `_` for `-`; `--set KEY=VALUE` is `method_parameters`. They are checked as the command
line's are, and a mistake in them, or in a file that they name, is a `d2unlearn.errors.D2Error` that says what to do. What the
commands show on the way is shown here too, on the standard error. A command that did exactly this before does nothing anew.

There is no function for what has a class of its own: `d2unlearn.GuardedModel` answers behind a gate, `d2unlearn.UnlearnTrainer`
trains step by step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import TypeVar, get_type_hints

from d2unlearn.config import (
    AnalyzeSettings,
    AuditSettings,
    BenchmarkSettings,
    CalibrateSettings,
    CompareSettings,
    EvaluateSettings,
    ReportSettings,
    UnlearnSettings,
    load_settings,
)
from d2unlearn.fields import NamesModel, marker_of
from d2unlearn.runtime import first_rank, say
from d2unlearn.schema import GATE_FILE

__all__ = [
    "AnalyzeSettings",
    "AuditSettings",
    "BenchmarkSettings",
    "CalibrateSettings",
    "CompareSettings",
    "EvaluateSettings",
    "ReportSettings",
    "UnlearnSettings",
    "analyze",
    "audit",
    "calibrate",
    "compare",
    "evaluate",
    "report",
    "unlearn",
]

Given = TypeVar("Given")


def unlearn(settings: UnlearnSettings) -> Path:
    """Remove knowledge from a model. Returns the artifact's folder: a model folder with `d2_manifest.json` in it.

    An interrupted run goes on from its last complete checkpoint. With `sign_key`, the artifact is signed in the end; what is
    written to it later, a gate for one, takes the signature away.
    """
    settings = checked_settings(settings)
    from d2unlearn.signing import private_key, sign
    from d2unlearn.training.unlearn import run_unlearn

    if settings.sign_key is not None:
        private_key(settings.sign_key)  # that it is one is better said now
    artifact = run_unlearn(replace(settings, sign_key=None))
    if settings.sign_key is not None and first_rank():
        sign(artifact, settings.sign_key)
    return artifact


def calibrate(settings: CalibrateSettings, tell: Callable[[str], None] = say) -> Path:
    """Calibrate an artifact's refusal. Returns the path of `d2_gate.json`, which is written into the artifact.

    With `update`, the rows are added to the gate that is there; with `sign_key`, the artifact is signed in the end. tell: gets
    what was found, line by line, among it the guarantee.
    """
    settings = checked_settings(settings)
    from d2unlearn.gate.run import run_calibrate
    from d2unlearn.gate.update import run_update
    from d2unlearn.signing import private_key, sign

    if settings.sign_key is not None:
        private_key(settings.sign_key)  # that it is one is better said now
    run = run_update if settings.update else run_calibrate
    for line in run(replace(settings, sign_key=None)):
        tell(line)
    if settings.sign_key is not None:
        tell(str(sign(Path(settings.model), settings.sign_key)))
    return Path(settings.model) / GATE_FILE


def evaluate(settings: EvaluateSettings | BenchmarkSettings) -> Path:
    """Measure what a model knows, on rows of one's own or on a benchmark. Returns the path of `evaluation.json`.

    `d2unlearn.serialization.read_evaluation` reads it.
    """
    settings = checked_settings(settings)
    if isinstance(settings, EvaluateSettings):
        from d2unlearn.evaluation.runner import run_evaluate

        return run_evaluate(settings)
    if settings.benchmark == "wmdp":
        from d2unlearn.benchmark.lm_tasks import run_tasks

        return run_tasks(settings)
    from d2unlearn.benchmark.run import run_benchmark

    return run_benchmark(settings)


def report(settings: ReportSettings) -> Path:
    """Draw a page from two evaluations. Returns its path. Needs no model and no torch."""
    settings = checked_settings(settings)
    from d2unlearn.report.run import run_report

    return run_report(
        settings.before,
        settings.after,
        settings.artifact,
        settings.output,
        settings.audit,
        redact=settings.redact,
        force=settings.force,
    )


def audit(settings: AuditSettings) -> Path:
    """Attack an artifact and say what may be claimed of it. Returns the path of `audit.json`; `audit.html` stands beside it.

    `d2unlearn.audit.records.read_audit` reads it.
    """
    settings = checked_settings(settings)
    from d2unlearn.audit.run import run_audit

    return run_audit(settings)


def analyze(settings: AnalyzeSettings) -> Path:
    """Put energy on trial against other detectors. Returns the path of `analysis.json`; `analysis.html` stands beside it.

    `d2unlearn.analysis.records.read_analysis` reads it.
    """
    settings = checked_settings(settings)
    from d2unlearn.analysis.page import write_page
    from d2unlearn.analysis.run import run_analyze

    path = run_analyze(settings)
    write_page(path)
    return path


def compare(settings: CompareSettings, tell: Callable[[str], None] = say) -> Path:
    """Tune methods and guards alike and evaluate each once. Returns the output folder: `table.md`, `table.json`, `pages`.

    tell: gets the table's lines. Needs `pip install 'd2unlearn[compare]'`.
    """
    settings = checked_settings(settings)
    from d2unlearn.comparison.run import run_compare

    for line in run_compare(settings):
        tell(line)
    return Path(settings.output)


def checked_settings(settings: Given) -> Given:
    """The settings, checked field by field; in place of a GGUF file that stands for a model, the folder of its weights.

    Raises `ConfigError` with every mistake.
    """
    given = {field.name: getattr(settings, field.name) for field in fields(settings)}  # type: ignore[arg-type]
    return with_model_folders(load_settings(type(settings), None, given))


def with_model_folders(settings: Given) -> Given:
    """The settings with the folder of its weights in place of each GGUF file that stands for a model."""
    hints = get_type_hints(type(settings), include_extras=True)
    named = {name: getattr(settings, name) for name, hint in hints.items() if marker_of(hint, NamesModel) is not None}
    files = {name: source for name, source in named.items() if source is not None and Path(source).is_file()}
    if not files:
        return settings
    from d2unlearn.gguf import folder_of_gguf, is_gguf

    return replace(settings, **{name: str(folder_of_gguf(source)) for name, source in files.items() if is_gguf(source)})  # type: ignore[type-var]
