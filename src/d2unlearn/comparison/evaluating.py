"""One contestant with one seed, judged on test questions: trained, calibrated, evaluated, attacked.

Killed, it goes on where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from d2unlearn.artifact import first_rank, read_manifest, versions
from d2unlearn.attacks.relearning import CHOICES, Relearning, relearn
from d2unlearn.benchmark.run import run_benchmark
from d2unlearn.comparison.context import Bench
from d2unlearn.comparison.cost import machine, metered
from d2unlearn.comparison.entries import base_rate, behind, load_raw, unlearn_settings
from d2unlearn.comparison.logs import keep_logs
from d2unlearn.comparison.plan import reads_logs
from d2unlearn.comparison.records import NO_COST, ORACLE, Cost, Judged, JudgedSet
from d2unlearn.config import BenchmarkSettings, CalibrateSettings, EvaluateSettings
from d2unlearn.data.template import Template
from d2unlearn.errors import GateError
from d2unlearn.evaluation.runner import NamedSet, evaluate, run_evaluate
from d2unlearn.gate.run import run_calibrate
from d2unlearn.runtime import atomic_write, read_json, remove, say, write_json
from d2unlearn.schema import EVALUATION_FILE, GATE_FILE, MANIFEST_FILE, EvaluatedSet, Evaluation, MetricResult, RelearningResult
from d2unlearn.serialization import read_evaluation, record_from_json, record_to_json, write_evaluation
from d2unlearn.training.unlearn import run_unlearn

GUARDED_VALUES = ("extraction_strength", "guarded_rouge_l_recall", "guarded_refusal_rate")
BARE_VALUES = ("extraction_strength", "rouge_l_recall")
"""What is kept question by question, so that contestants can be compared on the same questions: behind a guard, and without."""
DIGITS = 5


def judge(bench: Bench) -> Judged | None:
    """The record of a judgement. None on every rank but the first, which alone goes on when the model is trained."""
    if bench.run.kind == "guard":
        return _judged_guard(bench) if first_rank() else None
    folder, cost = bench.judged_as_is, NO_COST
    if bench.run.kind == "method":
        artifact, cost = _trained(bench)
        folder = str(artifact)
    if not first_rank():
        return None
    reason = "" if bench.run.kind == "method" else "judged as it is"
    if bench.run.kind == "method":
        reason = _calibrated(bench, folder)
    result = read_evaluation(run_evaluate(_evaluation(bench, folder)))
    suite = _suite(bench, folder)
    _show(bench, bench.workspace / "evaluation" / EVALUATION_FILE, Path(folder) / GATE_FILE if not reason else None)
    manifest = read_manifest(Path(folder)) or {}
    return _record(bench, result, suite, _comebacks(bench, folder), reason, cost, manifest.get("learning_rate"))


def _trained(bench: Bench) -> tuple[Path, Cost]:
    """The model trained with the parameters that tuning chose, and what that took (not measured if it was interrupted)."""
    output, note = bench.workspace / "artifact", bench.workspace / "cost.json"
    settings = unlearn_settings(bench, bench.store.tuned(bench.run.tuning).best.parameters, base_rate(bench), output)
    fresh = not output.exists() and not output.with_name(f"{output.name}.partial").exists()
    with metered() as meter:
        run_unlearn(settings)
    if fresh and first_rank():
        write_json(note, record_to_json(meter.cost, "cost"))
    if not note.is_file():
        return output, NO_COST
    return output, record_from_json(Cost, read_json(note), str(note), "a cost", "remove it")


def _calibrated(bench: Bench, folder: str) -> str:
    """Give the trained model a gate; why it has none, else empty. Of the forget rows it is shown validation questions only."""
    settings = CalibrateSettings(
        model=folder,
        retain=str(bench.files["retain"]),
        forget=str(bench.files["validation"]),
        max_false_refusal=bench.comparison.settings.max_false_refusal,
        max_new_tokens=bench.comparison.settings.max_new_tokens,
        batch_size=bench.comparison.settings.eval_batch_size,
        seed=bench.seed,
    )
    try:
        for line in run_calibrate(settings):
            say(line)
    except GateError as error:
        return str(error)
    return ""


def _evaluation(bench: Bench, folder: str) -> EvaluateSettings:
    tests, files, settings = bench.questions.tests, bench.files, bench.comparison.settings
    further = {kind: {each.name: str(files[f"test/{each.name}"]) for each in tests if each.kind == kind}
               for kind in ("forget", "retain")}  # fmt: skip
    return EvaluateSettings(
        model=folder,
        forget=further["forget"].pop("forget"),
        retain=further["retain"].pop("retain"),
        output=str(bench.workspace / "evaluation"),
        also_forget=further["forget"],
        also_retain=further["retain"],
        label=bench.run.contestant,
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.eval_batch_size,
        dtype=settings.dtype,
    )


def _suite(bench: Bench, folder: str) -> tuple[MetricResult, ...]:
    """The benchmark's metrics on its test questions, against the oracle's logs; none where the split names no benchmark."""
    split = bench.split
    if split.benchmark is None:
        return ()
    logs = bench.store.results / split.name / ORACLE / "logs.json"
    output = bench.workspace / "benchmark"
    path = run_benchmark(
        BenchmarkSettings(
            model=folder,
            benchmark=split.benchmark,
            output=str(output),
            data=str(bench.benchmark_data),
            retain_logs=str(logs) if reads_logs(split, bench.run) else None,
            forget_split=bench.forget_split,
            gradient_norm=False,
            label=bench.run.contestant,
            batch_size=bench.comparison.settings.eval_batch_size,
            dtype=bench.comparison.settings.dtype,
        )
    )
    if bench.run.contestant == ORACLE:
        keep_logs(output, logs)
    return read_evaluation(path).suite


def _comebacks(bench: Bench, folder: str) -> tuple[RelearningResult, ...]:
    """Relearning attacks on the forget rows; what comes back is asked of test questions."""
    settings, forget = bench.comparison.settings, bench.questions.forget
    made = load_raw(bench, folder)
    template = Template(made.tokenizer)
    rows = [template.tokens(row) for row in forget]
    groups = None if any(row.group is None for row in forget) else [str(row.group) for row in forget]
    chosen_by = {row.example_id for row in bench.questions.validation}
    judged = {index for index, row in enumerate(forget) if row.example_id not in chosen_by}
    attack = Relearning(learning_rate=settings.attack_learning_rate, seed=bench.seed)
    return tuple(
        relearn(made.model, rows, groups, choice, attack, judged=judged, eval_batch_size=settings.eval_batch_size)
        for choice in CHOICES
    )


def _judged_guard(bench: Bench) -> Judged:
    base = load_raw(bench, bench.original)
    guarded = behind(bench, base, bench.store.tuned(bench.run.tuning).best.parameters)
    sets = [NamedSet(each.name, each.kind, each.examples) for each in bench.questions.tests]
    result = evaluate(guarded, sets, replace(_evaluation(bench, bench.original), label=bench.run.contestant))
    path = bench.workspace / "evaluation" / EVALUATION_FILE
    write_evaluation(path, result)
    _show(bench, path, None)
    return _record(bench, result, (), (), "", NO_COST)


def _show(bench: Bench, evaluation: Path, gate: Path | None) -> None:
    """Keep every question with its answers, and the gate's file, for the pages."""
    folder = bench.store.answers(bench.run.key)
    atomic_write(folder / EVALUATION_FILE, evaluation.read_text(encoding="utf-8"))
    remove(folder / GATE_FILE)
    if gate is not None:
        atomic_write(folder / GATE_FILE, gate.read_text(encoding="utf-8"))
        atomic_write(folder / MANIFEST_FILE, (gate.parent / MANIFEST_FILE).read_text(encoding="utf-8"))


def _record(
    bench: Bench,
    result: Evaluation,
    suite: Sequence[MetricResult],
    comebacks: Sequence[RelearningResult],
    gate_reason: str,
    cost: Cost,
    rate: float | None = None,
) -> Judged:
    run = bench.run
    parameters = {} if run.kind == "as_is" else dict(bench.store.tuned(run.tuning).best.parameters)
    tests = {each.name: each for each in bench.questions.tests}
    return Judged(
        key=run.key,
        identity=bench.identity,
        split=run.split,
        contestant=run.contestant,
        kind=run.kind,
        seed=bench.seed,
        parameters=parameters,
        learning_rate=rate,
        sets=tuple(_judged_set(each, [row.group for row in tests[each.name].examples]) for each in result.sets),
        separation=result.separation,
        suite=tuple(suite),
        score_name=result.score_name,
        threshold=result.threshold,
        gate_reason=gate_reason,
        comebacks=tuple(comebacks),
        cost=cost,
        machine=machine(),
        versions=versions(),
    )


def _judged_set(found: EvaluatedSet, groups: Sequence[str | None]) -> JudgedSet:
    measured = {metric.name for metric in found.metrics}
    kept = GUARDED_VALUES if measured.issuperset(GUARDED_VALUES) else BARE_VALUES
    labels = [str(index) if group is None else group for index, group in enumerate(groups)]
    numbers = {label: str(number) for number, label in enumerate(dict.fromkeys(labels))}
    return JudgedSet(
        found.name,
        found.kind,
        len(found.examples),
        found.metrics,
        tuple(numbers[label] for label in labels),
        {name: tuple(round(each.scores[name], DIGITS) for each in found.examples) for name in kept},
    )
