"""`evaluate --benchmark wmdp`: tasks of lm-eval (WMDP, MMLU, any other) on a model, raw and guarded.

WMDP is scored by likelihood: lm-eval compares the four options' probabilities and never generates, so the gate has no say in
its accuracy. Raw accuracy is lm-eval's number. Guarded accuracy asks the gate about every question and is given twice: a
refusal counted as wrong, and as a guess (one in as many as there are options), which is what whoever may not abstain would do.
Generative tasks are run twice, raw and through the gate. Needs the extra `eval`.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d2unlearn.artifact import is_done, new_result
from d2unlearn.benchmark.cache import ResultCache
from d2unlearn.benchmark.guarded_answers import GuardedRequest, guarded_answers
from d2unlearn.benchmark.lm_results import generated_answers, summary_of, task_samples, task_set, tasks_evaluation
from d2unlearn.benchmark.suites import WMDP
from d2unlearn.config import BenchmarkSettings
from d2unlearn.data.wmdp import read_questions, task_file
from d2unlearn.errors import ConfigError, DataError
from d2unlearn.generation.guarded import Answer, GuardedModel
from d2unlearn.outputs import output_place
from d2unlearn.runtime import (
    atomic_write,
    fingerprint,
    hash_file,
    torch_dtype,
    write_json,
)
from d2unlearn.schema import EVALUATION_FILE, EvaluatedSet, Message
from d2unlearn.serialization import write_evaluation
from d2unlearn.version import __version__

EVAL, SUMMARY = "LMEval_EVAL.json", "LMEval_SUMMARY.json"
GENERATE_UNTIL = "generate_until"


@dataclass(frozen=True)
class TaskResults:
    """What lm-eval said of one task or group: all of it, and of generative tasks the samples behind the gate too."""

    task: str
    raw: dict[str, Any]
    guarded: dict[str, Any]


def run_tasks(settings: BenchmarkSettings) -> Path:
    """Evaluate and write `OUTPUT/evaluation.json`, `LMEval_EVAL.json` and `LMEval_SUMMARY.json`; at once when they are there.

    Raises `ConfigError` where lm-eval is not installed or knows no such task, `DataError` for a file that is no questions.
    """
    _check_installed()
    output = output_place(settings.output)
    tasks = list(settings.tasks or WMDP)
    files = {} if settings.data is None else _files(tasks, settings.data)
    guarded = GuardedModel.from_pretrained(settings.model, dtype=torch_dtype(settings.dtype), raw=True, use_gate=True)
    context = fingerprint([__version__, guarded.fingerprint, str(guarded.model.dtype)])
    hashes = {task: hash_file(path) for task, path in files.items()}
    key = fingerprint([context, hashes, tasks, settings.limit, settings.batch_size, settings.seed, settings.label])
    if is_done(output, key, settings):
        return output / EVALUATION_FILE
    with ResultCache(output, context) as cache:
        requests = str(output.with_name(f"{output.name}.partial") / "requests" / context[:16])
        run = functools.partial(
            _results, limit=settings.limit, seed=settings.seed, batch_size=settings.batch_size, cache=requests
        )
        results = [run(task, files.get(task), guarded) for task in tasks]
        sets = [task for result in results for task in _sets(result, guarded, cache, settings.batch_size, settings.seed)]
    with new_result(output, "evaluate", key, settings) as staged:
        write_evaluation(staged / EVALUATION_FILE, tasks_evaluation(settings, sets, guarded.gate))
        atomic_write(staged / EVAL, json.dumps({r.task: r.raw["samples"] for r in results}, indent=4, default=str))
        numbers = [summary_of(result.raw, result.task) for result in results]
        write_json(staged / SUMMARY, {name: value for summary in numbers for name, value in summary.items()})
    cache.discard()
    return output / EVALUATION_FILE


def _check_installed() -> None:
    try:
        import lm_eval  # noqa: F401
    except ModuleNotFoundError:
        raise ConfigError(["lm-eval is not installed; WMDP and MMLU need it: pip install 'd2unlearn[eval]'"]) from None


def _files(tasks: Sequence[str], folder: str) -> dict[str, Path]:
    """The local file of each task, checked."""
    paths = {task: task_file(task, folder) for task in tasks}
    missing = [task for task, path in paths.items() if path is None]
    if missing:
        raise DataError(f"{folder} has no {', '.join(f'{task}.jsonl' for task in missing)}")
    files = {task: path for task, path in paths.items() if path is not None}
    for path in files.values():
        read_questions(path)
    return files


def _results(
    task: str, file: Path | None, guarded: GuardedModel, *, limit: int | None, seed: int, batch_size: int, cache: str
) -> TaskResults:
    """Run one task or group. lm-eval keeps the answers to its requests in files whose names begin with `cache`."""
    from lm_eval import simple_evaluate

    from d2unlearn.evaluation.lm_model import GuardedLM

    manager = _manager()
    spec = task if file is None else _local(task, file)
    generates = _generates(manager, task, spec)

    def run(raw: bool) -> dict[str, Any]:
        with _quiet():
            results: dict[str, Any] = simple_evaluate(
                model=GuardedLM(guarded, batch_size=batch_size, raw=raw),
                tasks=[spec],
                task_manager=manager,
                limit=limit,
                apply_chat_template=generates and guarded.tokenizer.chat_template is not None,
                bootstrap_iters=0,
                use_cache=f"{cache}-{'raw' if raw else 'guarded'}",
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
            )
        return results

    behind = run(False)["samples"] if generates and guarded.gate is not None else {}
    return TaskResults(task, run(True), behind)


@functools.cache
def _manager() -> Any:
    """lm-eval's index of its thousands of tasks, which takes seconds to read."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _generates(manager: Any, task: str, spec: str | dict[str, Any]) -> bool:
    """Whether a task's answers are generated. Raises `ConfigError` for a name that lm-eval does not know."""
    try:
        with _quiet():
            loaded = manager.load([spec])
    except KeyError:
        raise ConfigError([f"lm-eval knows no task {task}; `lm-eval ls tasks` lists those it has"]) from None
    return any(known.get_config("output_type") == GENERATE_UNTIL for known in loaded["tasks"].values())


def _local(task: str, file: Path) -> dict[str, Any]:
    """lm-eval's own task on the questions of a file: as the member of a group, which may override what the task says."""
    own = {
        "task": task,
        "dataset_path": "parquet" if file.suffix == ".parquet" else "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
    }
    return {"group": f"{task} from a file", "task": [own]}


def _sets(result: TaskResults, guarded: GuardedModel, cache: ResultCache, batch_size: int, seed: int) -> Iterator[EvaluatedSet]:
    """The tasks of a result. What is decided by likelihood is asked of the gate as a user would, options included."""
    for task, raw in result.raw["samples"].items():
        samples = task_samples(task, raw, result.guarded.get(task, ()))
        answers: list[Answer] = []
        if guarded.gate is not None and task in result.guarded:
            answers = generated_answers(samples, guarded.gate.refusal_texts)
        elif guarded.gate is not None:
            requests = [GuardedRequest((Message("user", sample.question),)) for sample in samples]
            answers = guarded_answers(guarded, cache, requests, batch_size=batch_size, name=task)
        yield task_set(task, samples, answers, seed)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep lm-eval's notices from the terminal."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
