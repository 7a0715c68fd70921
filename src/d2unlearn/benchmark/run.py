"""`evaluate --benchmark`: a suite on a model, raw and guarded, as our result file with open-unlearning's two beside it.

Every result is on disk as soon as it is there, so that a run that was killed goes on where it was; a result of the same
inputs (weights, gate, rows, code version, convention) is not computed again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from d2unlearn.artifact import is_done, new_result
from d2unlearn.benchmark.cache import ResultCache
from d2unlearn.benchmark.conventions import OURS, Convention, convention_named
from d2unlearn.benchmark.datasets import LoadedSet, load_sets
from d2unlearn.benchmark.metrics import MetricInputs
from d2unlearn.benchmark.open_unlearning import (
    eval_entries,
    eval_file,
    read_logs,
    summary_entries,
    summary_file,
    write_entries,
)
from d2unlearn.benchmark.rendering import ChatFormat, Renderer
from d2unlearn.benchmark.results import benchmark_evaluation
from d2unlearn.benchmark.scoring import Scorer, render_example, score_set, takes_trees
from d2unlearn.benchmark.suites import SUITES, Suite, attacked_sets, chosen
from d2unlearn.config import BenchmarkSettings, identity
from d2unlearn.data.records import content_hash
from d2unlearn.errors import ConfigError
from d2unlearn.generation.guarded import GuardedModel
from d2unlearn.models import load_model, weights_name
from d2unlearn.outputs import output_place
from d2unlearn.runtime import fingerprint, say, torch_dtype
from d2unlearn.schema import EVALUATION_FILE
from d2unlearn.serialization import write_evaluation
from d2unlearn.version import __version__


def run_benchmark(settings: BenchmarkSettings) -> Path:
    """Evaluate and write `OUTPUT/evaluation.json`, open-unlearning's two files and a manifest; at once when they are there.

    Raises `DataError` for rows or logs that cannot be read, `ModelError` for a model that cannot be loaded.
    """
    output = output_place(settings.output)
    suite = suite_of(settings)
    convention = convention_of(settings, suite)
    retain_logs = {} if settings.retain_logs is None else read_logs(settings.retain_logs, suite)
    sets = load_sets(suite, settings)
    guarded = GuardedModel.from_pretrained(settings.model, dtype=torch_dtype(settings.dtype), raw=True, use_gate=True)
    chat = ChatFormat(settings.system_prompt, settings.date_string)
    renderer = Renderer(guarded.tokenizer, convention, chat)
    context = fingerprint([__version__, guarded.fingerprint, renderer.fingerprint, str(guarded.model.dtype)])
    key = _key(settings, context, sets, retain_logs)
    if is_done(output, key, settings):
        return output / EVALUATION_FILE
    with ResultCache(output, context) as cache:
        if len(cache):
            say(f"going on: {len(cache)} results are there already")
        scorer = scorer_of(settings, suite, guarded, renderer, cache, sets)
        scored = {loaded.name: score_set(scorer, loaded) for loaded in sets}
    mmlu = math.nan if settings.mmlu is None else settings.mmlu
    inputs = with_metrics(suite, MetricInputs(scored, renderer.convention, retain_logs, mmlu=mmlu))
    with new_result(output, "evaluate", key, settings) as staged:
        write_evaluation(staged / EVALUATION_FILE, benchmark_evaluation(settings, suite, inputs, guarded.gate))
        write_entries(staged / eval_file(suite), eval_entries(suite, inputs.computed, inputs.convention))
        write_entries(staged / summary_file(suite), summary_entries(suite, inputs.computed))
    cache.discard()
    return output / EVALUATION_FILE


def suite_of(settings: BenchmarkSettings) -> Suite:
    """The suite asked for, without the attacks that were not."""
    left_out = [] if settings.gradient_norm else ["mia_gradnorm"]
    left_out += [] if settings.reference_model is not None else ["mia_reference"]
    return chosen(SUITES[settings.benchmark], parts=settings.parts, left_out=left_out)


def convention_of(settings: BenchmarkSettings, suite: Suite) -> Convention:
    """The suite's own convention, else the one asked for. Raises `ConfigError` for another than a suite's own."""
    asked = convention_named(settings.convention)
    if suite.convention is not None and asked != OURS:
        raise ConfigError([f"{suite.name} is counted in one way only, {suite.convention.name}; leave --convention away"])
    return suite.convention or asked


def scorer_of(
    settings: BenchmarkSettings,
    suite: Suite,
    guarded: GuardedModel,
    renderer: Renderer,
    cache: ResultCache,
    sets: Sequence[LoadedSet],
) -> Scorer:
    """The model with all that it is scored with; loads the reference model where one was named and can be attacked with.

    Without held-out rows no attack has a number, so what only attacks need is not computed.
    """
    attackable = all(loaded.examples for loaded in sets if loaded.name in attacked_sets(suite))
    reference = None
    if settings.reference_model is not None and "mia_reference" in suite.metrics and attackable:
        reference = load_model(settings.reference_model, dtype=guarded.model.dtype)
        reference.to(guarded.model.device)  # type: ignore[arg-type]
    first = next(((loaded.spec, loaded.examples[0]) for loaded in sets if loaded.spec.others and loaded.examples), None)
    answers = () if first is None else render_example(renderer, *first).rows.values()
    trees = takes_trees(guarded.model, [row for rows in answers for row in rows])
    gradients = "mia_gradnorm" in suite.metrics and attackable
    return Scorer(guarded, renderer, cache, suite, settings.batch_size, gradients, reference, trees)


def with_metrics(suite: Suite, inputs: MetricInputs) -> MetricInputs:
    """The inputs with the suite's metrics computed, in the table's order."""
    for key, metric in suite.metrics.items():
        inputs = replace(inputs, computed={**inputs.computed, key: metric.compute(inputs)})
    return inputs


def _key(settings: BenchmarkSettings, context: str, sets: Sequence[LoadedSet], retain_logs: Mapping[str, Any]) -> str:
    """What the result depends on: the model and how it is read, rows, the retain model's logs, settings without places."""
    rows = [[loaded.name, [[content_hash(e), e.extra] for e in loaded.examples]] for loaded in sets]
    reference = None if settings.reference_model is None else weights_name(settings.reference_model)
    return fingerprint([context, rows, retain_logs, reference, identity(settings)])
