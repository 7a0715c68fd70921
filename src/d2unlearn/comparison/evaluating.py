"""One entry with one seed on test questions: trained, calibrated, evaluated, attacked.

Killed, it goes on where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from d2unlearn.artifact import read_manifest, versions
from d2unlearn.attacks.reading import NotShownError, group_labels
from d2unlearn.attacks.relearned_rows import divided, without_copies
from d2unlearn.attacks.relearning import TWO_DECADES, Relearning, at_rates, grid_rate, relearn
from d2unlearn.benchmark.run import run_benchmark
from d2unlearn.comparison.context import RunContext
from d2unlearn.comparison.cost import machine, metered
from d2unlearn.comparison.entries import base_rate, behind, load_raw, unlearn_settings
from d2unlearn.comparison.logs import keep_logs
from d2unlearn.comparison.outcomes import ATTACK_STEPS, RELEARNED_ROWS
from d2unlearn.comparison.plan import reads_logs
from d2unlearn.comparison.records import NO_COST, RETAIN_MODEL, RunResult, SetResult, TrainingCost, group_numbers
from d2unlearn.comparison.rewording import told_reworded
from d2unlearn.config import BenchmarkSettings, CalibrateSettings, EvaluateSettings
from d2unlearn.data.template import Template
from d2unlearn.errors import GateError
from d2unlearn.evaluation.runner import evaluate, run_evaluate
from d2unlearn.gate.run import run_calibrate
from d2unlearn.runtime import atomic_write, first_rank, read_json, remove, say, write_json
from d2unlearn.schema import EVALUATION_FILE, GATE_FILE, MANIFEST_FILE, EvaluatedSet, Evaluation, MetricResult, RelearningResult
from d2unlearn.serialization import read_evaluation, record_from_json, record_to_json, write_evaluation
from d2unlearn.training.unlearn import run_unlearn

GUARDED_VALUES = ("extraction_strength", "guarded_rouge_l_recall", "guarded_refusal_rate")
BARE_VALUES = ("extraction_strength", "rouge_l_recall")
"""What is kept question by question, so that entries can be compared on the same questions: behind a guard, and without."""
DIGITS = 5
RELEARNED_SHARE = 0.1
"""Of the forget rows, for the choices of rows that take a share."""


def evaluate_run(context: RunContext) -> RunResult | None:
    """The result of a run. None on every rank but the first, which alone goes on when the model is trained."""
    if context.run.kind == "guard":
        return _guard_result(context) if first_rank() else None
    folder, cost = (context.as_is_model, NO_COST) if context.run.kind == "as_is" else _trained(context)
    if not first_rank():
        return None
    reason = "judged as it is" if context.run.kind == "as_is" else _calibrated(context, folder)
    evaluation = read_evaluation(run_evaluate(_evaluation(context, folder)))
    suite = _suite(context, folder)
    _keep_answers(context, None if reason else Path(folder))
    return replace(
        _result(context, evaluation),
        learning_rate=(read_manifest(Path(folder)) or {}).get("learning_rate"),
        suite=suite,
        gate_reason=reason,
        comebacks=relearning_results(context, folder),
        reworded=(told_reworded(context, folder),),
        cost=cost,
    )


def _guard_result(context: RunContext) -> RunResult:
    base = load_raw(context.original, context.settings.dtype)
    guarded = behind(context, base, _chosen(context))
    evaluation = evaluate(guarded, context.questions.tests, _evaluation(context, context.original))
    write_evaluation(context.workspace / "evaluation" / EVALUATION_FILE, evaluation)
    _keep_answers(context, None)
    return _result(context, evaluation)


def _chosen(context: RunContext) -> dict[str, float]:
    """The parameters that tuning chose; none for a model as it is."""
    return {} if context.run.kind == "as_is" else dict(context.store.tuning(context.run.tuning).best.parameters)


def _trained(context: RunContext) -> tuple[str, TrainingCost]:
    """The folder of the trained model, and what training took (not measured if it was interrupted)."""
    output, note = context.workspace / "artifact", context.workspace / "cost.json"
    settings = unlearn_settings(context, _chosen(context), base_rate(context), output)
    fresh = not output.exists() and not output.with_name(f"{output.name}.partial").exists()
    with metered() as meter:
        run_unlearn(settings)
    if fresh and first_rank():
        write_json(note, record_to_json(meter.cost, "cost"))
    if not note.is_file():
        return str(output), NO_COST
    return str(output), record_from_json(TrainingCost, read_json(note), str(note), "a cost", "remove it")


def _calibrated(context: RunContext, folder: str) -> str:
    """Give the trained model a gate; why it has none, else empty. Of the forget rows it is shown validation questions only."""
    settings = CalibrateSettings(
        model=folder,
        retain=str(context.files["retain"]),
        forget=str(context.files["validation"]),
        max_false_refusal=context.settings.max_false_refusal,
        max_new_tokens=context.settings.max_new_tokens,
        batch_size=context.settings.eval_batch_size,
        seed=context.seed,
    )
    try:
        for line in run_calibrate(settings):
            say(line)
    except GateError as error:
        return str(error)
    return ""


def _evaluation(context: RunContext, folder: str) -> EvaluateSettings:
    files = {(test.kind, test.name): str(context.files[f"test/{test.name}"]) for test in context.questions.tests}
    return EvaluateSettings(
        model=folder,
        forget=files.pop(("forget", "forget")),
        retain=files.pop(("retain", "retain")),
        output=str(context.workspace / "evaluation"),
        also_forget={name: file for (kind, name), file in files.items() if kind == "forget"},
        also_retain={name: file for (kind, name), file in files.items() if kind == "retain"},
        label=context.run.entry,
        max_new_tokens=context.settings.max_new_tokens,
        batch_size=context.settings.eval_batch_size,
        dtype=context.settings.dtype,
    )


def _suite(context: RunContext, folder: str) -> tuple[MetricResult, ...]:
    """The benchmark's metrics on its test questions, against the retain model's logs; none where there is no benchmark."""
    split = context.split
    if split.benchmark is None:
        return ()
    logs = context.store.results / split.name / RETAIN_MODEL / "logs.json"
    output = context.workspace / "benchmark"
    path = run_benchmark(
        BenchmarkSettings(
            model=folder,
            benchmark=split.benchmark,
            output=str(output),
            data=str(context.benchmark_data),
            retain_logs=str(logs) if reads_logs(split, context.run) else None,
            forget_split=context.forget_split,
            gradient_norm=False,
            label=context.run.entry,
            batch_size=context.settings.eval_batch_size,
            dtype=context.settings.dtype,
        )
    )
    if context.run.entry == RETAIN_MODEL:
        keep_logs(output, logs)
    return read_evaluation(path).suite


def relearning_results(context: RunContext, folder: str) -> tuple[RelearningResult, ...]:
    """Each choice of forget rows relearned, at the worst learning rate; what comes back is asked of test questions."""
    forget = context.questions.forget
    made = load_raw(folder, context.settings.dtype)
    template = Template(made.tokenizer)
    rows = [template.tokens(row) for row in forget]
    groups = None if any(row.group is None for row in forget) else [str(row.group) for row in forget]
    chosen_by = {row.example_id for row in context.questions.validation}
    tested = {index for index, row in enumerate(forget) if row.example_id not in chosen_by}
    rates = [grid_rate(context.settings.attack_learning_rate, factor) for factor in TWO_DECADES]
    attacks = at_rates(Relearning(steps=(ATTACK_STEPS,), seed=context.seed), rates)
    size, labels, results = context.settings.eval_batch_size, group_labels(forget), list[RelearningResult]()
    for choice in RELEARNED_ROWS:
        try:
            division = divided(choice, labels, share=RELEARNED_SHARE, seed=context.seed)
            division = without_copies(division, [row.input_ids for row in rows])
            results.append(relearn(made.model, rows, groups, choice, division, attacks, judged=tested, eval_batch_size=size))
        except NotShownError as error:
            say(f"{context.run.key}: not relearned, {choice}: {error}")
    return tuple(results)


def _keep_answers(context: RunContext, artifact: Path | None) -> None:
    """Keep every question with its answers for the pages, and of a model with a gate its file and manifest."""
    folder = context.store.answers(context.run.key)
    atomic_write(folder / EVALUATION_FILE, (context.workspace / "evaluation" / EVALUATION_FILE).read_text(encoding="utf-8"))
    remove(folder / GATE_FILE)
    if artifact is not None:
        for name in (GATE_FILE, MANIFEST_FILE):
            atomic_write(folder / name, (artifact / name).read_text(encoding="utf-8"))


def _result(context: RunContext, evaluation: Evaluation) -> RunResult:
    """What is kept of an evaluation, without what is measured of trained models and of models as they are."""
    groups = {test.name: [row.group for row in test.examples] for test in context.questions.tests}
    return RunResult(
        key=context.run.key,
        identity=context.identity,
        split=context.run.split,
        contestant=context.run.entry,
        kind=context.run.kind,
        seed=context.seed,
        parameters=_chosen(context),
        learning_rate=None,
        sets=tuple(_set_result(evaluated, groups[evaluated.name]) for evaluated in evaluation.sets),
        separation=evaluation.separation,
        suite=(),
        score_name=evaluation.score_name,
        threshold=evaluation.threshold,
        gate_reason="",
        comebacks=(),
        cost=NO_COST,
        machine=machine(),
        versions=versions() | context.origin,
    )


def _set_result(evaluated: EvaluatedSet, groups: Sequence[str | None]) -> SetResult:
    names = {metric.name for metric in evaluated.metrics}
    kept = GUARDED_VALUES if names.issuperset(GUARDED_VALUES) else BARE_VALUES
    return SetResult(
        evaluated.name,
        evaluated.kind,
        len(evaluated.examples),
        evaluated.metrics,
        group_numbers(groups),
        {name: tuple(round(example.scores[name], DIGITS) for example in evaluated.examples) for name in kept},
    )
