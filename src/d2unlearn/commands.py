"""What the command line does, from Python: one function a command, each of its settings.

    from d2unlearn.commands import UnlearnSettings, calibrate, evaluate, unlearn

    artifact = unlearn(UnlearnSettings("./model", "forget.jsonl", "retain.jsonl", output="./artifact"))

Settings are the command's options with `_` for `-`; `--set KEY=VALUE` is `method_parameters`. They are checked as the command
line's are, and a mistake in them, or in a file that they name, is a `d2unlearn.errors.D2Error` that says what to do. What the
commands show on the way is shown here too, on the standard error. A command that did exactly this before does nothing anew.

What has a class of its own: `d2unlearn.GuardedModel` answers and chats behind a gate, `d2unlearn.UnlearnTrainer` trains step
by step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, get_type_hints

from d2unlearn.config import (
    AnalyzeSettings,
    AuditSettings,
    BenchmarkSettings,
    CalibrateSettings,
    CheckSettings,
    CompareSettings,
    EvaluateSettings,
    GenerateSettings,
    MakeSettings,
    PlaySettings,
    QuickstartSettings,
    ReportSettings,
    ServeSettings,
    UnlearnSettings,
    load_settings,
)
from d2unlearn.errors import needs_extra
from d2unlearn.fields import NamesModel, marker_of
from d2unlearn.runtime import first_rank, say
from d2unlearn.schema import GATE_FILE

if TYPE_CHECKING:
    from d2unlearn.data.check import DataSummary

__all__ = [
    "AnalyzeSettings",
    "AuditSettings",
    "BenchmarkSettings",
    "CalibrateSettings",
    "CheckSettings",
    "CompareSettings",
    "EvaluateSettings",
    "GenerateSettings",
    "MakeSettings",
    "PlaySettings",
    "QuickstartSettings",
    "ReportSettings",
    "ServeSettings",
    "UnlearnSettings",
    "analyze",
    "audit",
    "calibrate",
    "check_data",
    "compare",
    "evaluate",
    "generate",
    "make_data",
    "play",
    "quickstart",
    "report",
    "serve",
    "unlearn",
]

Given = TypeVar("Given")


def unlearn(settings: UnlearnSettings) -> Path:
    """Remove knowledge from a model. Returns the artifact's folder: a model folder with `d2_manifest.json` in it.

    An interrupted run goes on from its last complete checkpoint. With `sign_key`, the artifact is signed in the end; what is
    written to it later, a gate for one, takes the signature away.
    """
    settings = checked_settings(settings)
    from d2unlearn.signing import signer
    from d2unlearn.training.unlearn import run_unlearn

    sign_artifact = signer(settings.sign_key)
    artifact = run_unlearn(replace(settings, sign_key=None))
    if first_rank():
        sign_artifact(artifact)
    return artifact


def calibrate(settings: CalibrateSettings, tell: Callable[[str], None] = say) -> Path:
    """Calibrate an artifact's refusal. Returns the path of `d2_gate.json`, which is written into the artifact.

    With `update`, the rows are added to the gate that is there; with `sign_key`, the artifact is signed in the end. tell: gets
    what was found, line by line, among it the guarantee.
    """
    settings = checked_settings(settings)
    from d2unlearn.gate.run import run_calibrate
    from d2unlearn.gate.update import run_update
    from d2unlearn.signing import signer

    sign_artifact = signer(settings.sign_key)
    run = run_update if settings.update else run_calibrate
    for line in run(replace(settings, sign_key=None)):
        tell(line)
    signature = sign_artifact(Path(settings.model))
    if signature is not None:
        tell(str(signature))
    return Path(settings.model) / GATE_FILE


def generate(settings: GenerateSettings, tell: Callable[[str], None] = say) -> str | Path:
    """Answer `prompt`, or the rows of the file `input`, behind the artifact's gate.

    Returns the answer to the prompt; of a file the path of `output`, which has a line for each row. tell: gets how many answers
    were written and how many of them are refusals.
    """
    settings = checked_settings(settings)
    from d2unlearn.generation.run import run_generate

    lines = run_generate(settings)
    if settings.prompt is not None:
        (answer,) = lines  # to its end, where --show-energy says what was decided
        return answer
    for line in lines:
        tell(line)
    return Path(str(settings.output))


def serve(settings: ServeSettings) -> None:
    """Serve the guarded model with OpenAI's HTTP interface, until SIGINT or SIGTERM. Needs `pip install 'd2unlearn[serve]'`."""
    settings = checked_settings(settings)
    with needs_extra("serve"):
        from d2unlearn.serving.run import run_serve
    run_serve(settings)


def play(settings: PlaySettings) -> None:
    """Serve a page that shows the gate at work, until SIGINT or SIGTERM. Needs `pip install 'd2unlearn[serve]'`."""
    settings = checked_settings(settings)
    with needs_extra("serve"):
        from d2unlearn.serving.playground import run_play
    run_play(settings)


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
    with needs_extra("compare"):
        from d2unlearn.comparison.run import run_compare

    for line in run_compare(settings):
        tell(line)
    return Path(settings.output)


def make_data(settings: MakeSettings, tell: Callable[[str], None] = say) -> Path:
    """Make all files from the name of a topic, by asking the model. Returns their folder. tell: gets what was made."""
    settings = checked_settings(settings)
    from d2unlearn.topic.run import run_make

    for line in run_make(settings):
        tell(line)
    return Path(settings.output)


def check_data(settings: CheckSettings, tell: Callable[[str], None] = say) -> dict[str, DataSummary]:
    """Look at data sets before they are used. Returns what was found of each, by its name.

    tell: gets a rendered row of each set, duplicates, what two sets have in common, and what each command will lack. With
    `model`, its tokenizer and chat template count tokens; it is not loaded itself.
    """
    settings = checked_settings(settings)
    from d2unlearn.data.check import described_sets, inspect, read_sets_of

    sets, template, context = read_sets_of(settings), None, None
    if settings.model is not None:
        from d2unlearn.data.template import Template
        from d2unlearn.models import context_of, load_tokenizer

        template, context = Template(load_tokenizer(settings.model)), context_of(settings.model)
    facts = {name: inspect(examples, template) for name, examples in sets.items()}
    length, folder = settings.max_length, settings.data
    for line in described_sets(sets, facts, template, max_length=length, context=context, folder=folder):
        tell(line)
    return facts


def quickstart(settings: QuickstartSettings) -> Path:
    """The whole way on a made-up world, or with `real` on a topic of a pretrained model. Returns the report's path."""
    settings = checked_settings(settings)
    from d2unlearn.quickstart.real import run_real
    from d2unlearn.quickstart.run import run_quickstart

    return run_real(settings) if settings.real else run_quickstart(settings)


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
