"""`analyze`: energy on trial against every other detector, on one model and beside it the original and the retain model.

Each model answers every request once, and what every detector needs is read meanwhile. Retained calibration requests, which are
no test requests, are split in two: one half fits what needs fitting, the other sets the thresholds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from d2unlearn.analysis.costs import detector_costs, generation_seconds, prompt_logits
from d2unlearn.analysis.detectors import BASE_DETECTOR, DETECTORS, Detector
from d2unlearn.analysis.model import ModelTraces, answered_questions, calibration_curves, model_trial, perturbation_results
from d2unlearn.analysis.perturbations import PERTURBATIONS, ModelUnderTest
from d2unlearn.analysis.recorder import Answering
from d2unlearn.analysis.records import Analysis, DetectorSummary, ModelRole, ModelTrial, PerturbationResult, write_analysis
from d2unlearn.analysis.sets import AnalysisSets, bootstrap_weights, read_analysis_sets
from d2unlearn.analysis.significance import refusals_of
from d2unlearn.analysis.thresholds import REFUSAL_RATES
from d2unlearn.artifact import is_done, new_result
from d2unlearn.config import AnalyzeSettings, identity
from d2unlearn.data.records import content_hash
from d2unlearn.errors import ModelError
from d2unlearn.gate.gate import EnergyGate
from d2unlearn.layers import Layers, layers_of
from d2unlearn.models import end_token_ids, load_model, load_tokenizer, pad_token_id, weights_name
from d2unlearn.outputs import kept_settings, output_place
from d2unlearn.runtime import fingerprint, hash_file, pick_device, say, torch_dtype
from d2unlearn.schema import ANALYSIS_FILE, GATE_FILE, Example, Kind
from d2unlearn.version import __version__


def run_analyze(settings: AnalyzeSettings) -> Path:
    """Analyse and write `OUTPUT/analysis.json` with a manifest; at once when it is there already."""
    output = output_place(settings.output)
    sets = read_analysis_sets(settings)
    key = _key(settings, sets)
    if not is_done(output, key, settings):
        analysis = analyze(sets, settings)
        with new_result(output, "analyze", key, settings) as staged:
            write_analysis(staged / ANALYSIS_FILE, analysis)
    return output / ANALYSIS_FILE


def analyze(sets: AnalysisSets, settings: AnalyzeSettings) -> Analysis:
    """Put every detector on trial on every model that the settings name."""
    gate = EnergyGate.from_pretrained(settings.model) if (Path(settings.model) / GATE_FILE).is_file() else None
    base = BASE_DETECTOR if gate is None else f"energy/{gate.score_name}"
    paths = _model_paths(settings)
    vocab_rows = None if gate is None else gate.vocab_rows
    how = Answering(settings.max_new_tokens, settings.batch_size, vocab_rows=vocab_rows, seed=settings.seed)
    models = {role: _loaded(path, torch_dtype(settings.dtype), how) for role, path in paths.items()}
    traces = {role: _answered(role, model, sets) for role, model in models.items()}
    say("statistics")
    fitted = {role: answers.fitted() for role, answers in traces.items()}
    weights = sets.weights(settings.seed)
    trials = {role: model_trial(role, paths[role], traces[role], fitted[role], sets, weights, base) for role in models}
    prompts = models["model"].prompts(sets.main("forget").examples[: settings.batch_size])
    timed = traces["model"].sets[sets.main("forget").name].take(range(len(prompts)))
    seconds = generation_seconds(models["model"].model, prompts, models["model"].how)
    logits = prompt_logits(models["model"].model, prompts, vocab_rows)
    return Analysis(
        model=settings.model,
        label=settings.label or Path(settings.model).name,
        reference=base,
        gate_score=None if gate is None else gate.score_name,
        sets=sets.summaries(),
        indices=tuple(DetectorSummary(name, d.label, d.reads, d.forgotten, d.fitted) for name, d in DETECTORS.items()),
        models=tuple(trials.values()),
        asked=tuple(answered_questions(sets, traces, fitted["model"][base], {r: m.token_text for r, m in models.items()})),
        costs=tuple(detector_costs(fitted["model"], timed, logits, seconds)),
        generation_ms=1e3 * seconds,
        answer_tokens=float(np.mean([len(tokens) for tokens in timed.token_ids])),
        curves=tuple(calibration_curves(traces["model"], sets, settings.seed)),
        disturbances={name: perturbation.label for name, perturbation in PERTURBATIONS.items()},
        disturbed=tuple(_perturbed(models["model"], sets, fitted["model"], trials["model"], settings.disturbed, settings.seed)),
        n_fit=len(sets.fit),
        n_calibration=len(sets.threshold),
        settings=kept_settings(settings),
    )


def _model_paths(settings: AnalyzeSettings) -> dict[ModelRole, str]:
    """Where each model lies, in the order of the report."""
    given: dict[ModelRole, str | None] = {"original": settings.original, "model": settings.model, "oracle": settings.oracle}
    return {role: path for role, path in given.items() if path is not None}


def _loaded(path: str, dtype: torch.dtype | None, how: Answering) -> ModelUnderTest:
    """The model and its tokenizer, which say how an answer ends and what it is padded with."""
    model, tokenizer = load_model(path, dtype=dtype), load_tokenizer(path)
    model.to(pick_device())  # type: ignore[arg-type]
    ends, layers = tuple(end_token_ids(model, tokenizer)), _readable_layers(model)
    return ModelUnderTest(model, tokenizer, replace(how, pad_id=pad_token_id(tokenizer), ends=ends, layers=layers))


def _readable_layers(model: PreTrainedModel) -> Layers | None:
    """The model's layers; None, with a line for a person, where they cannot be read one by one."""
    try:
        return layers_of(model)
    except ModelError as error:
        say(f"no energies by layer: {error}")
        return None


def _answered(role: ModelRole, model: ModelUnderTest, sets: AnalysisSets) -> ModelTraces:
    by_set = {named.name: model.traces(named.examples, f"{role}, {named.name}") for named in sets.judged}
    fit, threshold = (model.traces(rows, f"{role}, calibration") for rows in (sets.fit, sets.threshold))
    return ModelTraces(by_set, fit, threshold)


def _perturbed(
    model: ModelUnderTest, sets: AnalysisSets, fitted: Mapping[str, Detector], trial: ModelTrial, at_most: int, seed: int
) -> list[PerturbationResult]:
    """Some of the same requests under every perturbation, judged by the thresholds that were set without one."""
    kinds: tuple[Kind, ...] = ("retain", "forget")
    rows = {kind: _some(sets.main(kind).examples, at_most, seed) for kind in kinds}
    weights = {kind: bootstrap_weights(examples, seed) for kind, examples in rows.items()}
    at_lowest = refusals_of(trial, REFUSAL_RATES[0])
    thresholds = {detector: refusals.threshold for detector, refusals in at_lowest.items()}
    results: list[PerturbationResult] = []
    for name, perturbation in PERTURBATIONS.items():
        with perturbation.applied(replace(model, how=replace(model.how, layers=None))) as perturbed:
            traces = {kind: perturbed.traces(examples, f"{name}, {kind}") for kind, examples in rows.items()}
        results += perturbation_results(name, traces, fitted, thresholds, weights)
    return results


def _some(examples: Sequence[Example], at_most: int, seed: int) -> list[Example]:
    """At most so many of the rows, drawn by the seed, in their order."""
    order = np.random.default_rng(seed).permutation(len(examples))
    return [examples[index] for index in sorted(order[:at_most])]


def _key(settings: AnalyzeSettings, sets: AnalysisSets) -> str:
    """What the result depends on: weights, the gate, rows, settings without places, version."""
    rows = [[named.name, named.kind, [content_hash(row) for row in named.examples]] for named in sets.judged]
    rows += [["calibration", "retain", [content_hash(row) for row in (*sets.fit, *sets.threshold)]]]
    weights = {role: weights_name(path) for role, path in _model_paths(settings).items()}
    gate = Path(settings.model) / GATE_FILE
    return fingerprint([__version__, weights, hash_file(gate) if gate.is_file() else None, rows, identity(settings)])
