"""From what was read of one model's answers to its trial: separations, refusals, layers, calibration sizes, answers to look at.

Pure: numbers in, records out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
from numpy.typing import NDArray

from d2unlearn.analysis.detectors import DETECTORS, Detector, signed_values
from d2unlearn.analysis.recorder import LAYER_POSITIONS, AnswerTraces
from d2unlearn.analysis.records import (
    AnsweredQuestion,
    AnswerEnergies,
    CurvePoint,
    LayerEnergies,
    ModelRole,
    ModelTrial,
    PerturbationResult,
    Spread,
)
from d2unlearn.analysis.roc import BootstrapWeights, estimate, pair_separations, roc_statistics
from d2unlearn.analysis.sets import AnalysisSets
from d2unlearn.analysis.thresholds import DetectorScores, calibration_curve, refusals, refused_share
from d2unlearn.quantities import LogSumExp
from d2unlearn.schema import Kind
from d2unlearn.stats import Floats

CALIBRATION_SIZES = (20, 50, 100, 200, 400, 800)
"""Numbers of calibration requests that thresholds are tried with."""
N_CHOICES = 200
N_FITTED_CHOICES = 25
"""Random choices of so many calibration requests; fewer where each means fitting anew."""
NO_LAYERS = "the model's layers and the norm behind them could not be told apart"


@dataclass(frozen=True)
class ModelTraces:
    """A model's answers: by set, and on calibration rows: those to fit on and those that set thresholds."""

    sets: Mapping[str, AnswerTraces]
    fit: AnswerTraces
    threshold: AnswerTraces

    def fitted(self) -> dict[str, Detector]:
        """Every detector, fitted to this model."""
        return {name: detector.fit(self.fit) for name, detector in DETECTORS.items()}

    def scores(self, detector: Detector) -> DetectorScores:
        by_set = {name: detector.scores(traces) for name, traces in self.sets.items()}
        return DetectorScores(detector.scores(self.threshold), by_set)


def model_trial(
    role: ModelRole,
    model: str,
    traces: ModelTraces,
    fitted: Mapping[str, Detector],
    sets: AnalysisSets,
    weights: Mapping[str, BootstrapWeights],
    base: str,
) -> ModelTrial:
    """Every detector on every pair of a forget and a retained set, and what its thresholds would refuse."""
    scores = {name: traces.scores(detector) for name, detector in fitted.items()}
    separations = []
    for forget, retain in product(sets.named("forget"), sets.named("retain")):
        sides = {name: (scored.sets[retain], scored.sets[forget]) for name, scored in scores.items()}
        separations += pair_separations(sides, weights[retain], weights[forget], base, (forget, retain))
    return ModelTrial(
        role,
        model,
        {name: _values(detector, traces) for name, detector in fitted.items()},
        tuple(separations),
        tuple(refusals(scores, weights, base, sets.main("forget").name)),
        tuple(layer_energies(traces, sets, weights, n) for n in (1, LAYER_POSITIONS)) if traces.fit.layers else (),
        "" if traces.fit.layers else NO_LAYERS,
    )


def layer_energies(
    traces: ModelTraces, sets: AnalysisSets, weights: Mapping[str, BootstrapWeights], positions: int
) -> LayerEnergies:
    """Energies by layer, as means over the first positions of each answer; forget against retain at each layer."""
    means = {name: np.array([row[:positions].mean(axis=0) for row in answers.layers]) for name, answers in traces.sets.items()}
    forget, retain = sets.main("forget").name, sets.main("retain").name
    layers = zip(means[retain].T, means[forget].T, strict=True)
    auroc = [roc_statistics(low, high, weights[retain], weights[forget])["auroc"] for low, high in layers]
    spread = {name: tuple(_spread(layer) for layer in values.T) for name, values in means.items()}
    return LayerEnergies(positions, spread, tuple(estimate(values) for values in auroc))


def calibration_curves(traces: ModelTraces, sets: AnalysisSets, seed: int) -> list[CurvePoint]:
    """False refusals and misses of every detector at every number of calibration requests, of those that are there."""
    pool = traces.fit.joined(traces.threshold)
    retain, forget = (traces.sets[sets.main(kind).name] for kind in ("retain", "forget"))
    points = []
    for name, detector in DETECTORS.items():
        if detector.fitted:
            rescore = partial(_refitted, detector, pool, retain, forget)
        else:
            rescore = partial(_looked_up, detector.scores(pool), detector.scores(retain), detector.scores(forget))
        n_draws = N_FITTED_CHOICES if detector.fitted else N_CHOICES
        points += calibration_curve(
            name, rescore, len(pool), CALIBRATION_SIZES, fitted=detector.fitted, n_draws=n_draws, seed=seed
        )
    return points


_Rows = NDArray[np.intp]


def _refitted(
    detector: Detector, pool: AnswerTraces, retain: AnswerTraces, forget: AnswerTraces, fit: _Rows, threshold: _Rows
) -> tuple[Floats, Floats, Floats]:
    fitted = detector.fit(pool.take(fit.tolist()))
    return fitted.scores(pool.take(threshold.tolist())), fitted.scores(retain), fitted.scores(forget)


def _looked_up(pool: Floats, retain: Floats, forget: Floats, _fit: _Rows, threshold: _Rows) -> tuple[Floats, Floats, Floats]:
    return pool[threshold], retain, forget


def perturbation_results(
    name: str,
    traces: Mapping[Kind, AnswerTraces],
    fitted: Mapping[str, Detector],
    thresholds: Mapping[str, float],
    weights: Mapping[Kind, BootstrapWeights],
) -> list[PerturbationResult]:
    """Every detector on answers given under a perturbation, by the thresholds that were set before it."""
    results = []
    for key, detector in fitted.items():
        retain, forget = detector.scores(traces["retain"]), detector.scores(traces["forget"])
        auroc = roc_statistics(retain, forget, weights["retain"], weights["forget"])["auroc"]
        wrong = refused_share(retain, thresholds[key], weights["retain"])
        missed = 1 - refused_share(forget, thresholds[key], weights["forget"])
        results.append(PerturbationResult(name, key, estimate(auroc), estimate(wrong), estimate(missed)))
    return results


TokenText = Callable[[int], str]


def answered_questions(
    sets: AnalysisSets,
    traces: Mapping[ModelRole, ModelTraces],
    base: Detector,
    texts: Mapping[ModelRole, TokenText],
) -> list[AnsweredQuestion]:
    """Of each set the typical and the most misleading request to the model on trial, as every model answered it."""
    questions = []
    for named in sets.judged:
        order = np.argsort(base.scores(traces["model"].sets[named.name]), kind="stable")
        rows = {"typical": order[len(order) // 2], "most misleading": order[0] if named.kind == "forget" else order[-1]}
        for choice, row in rows.items():
            told = tuple(_energies(role, answers.sets[named.name], int(row), texts[role]) for role, answers in traces.items())
            question = named.examples[int(row)].question
            questions.append(AnsweredQuestion(named.name, named.kind, choice, question, told))  # type: ignore[arg-type]
    return questions


def _energies(role: ModelRole, traces: AnswerTraces, row: int, text: TokenText) -> AnswerEnergies:
    energies = -traces.values[LogSumExp()][row]
    return AnswerEnergies(role, tuple(map(text, traces.token_ids[row])), tuple(_short(energy) for energy in energies))


def _values(detector: Detector, traces: ModelTraces) -> dict[str, tuple[float, ...]]:
    return {name: tuple(_short(value) for value in signed_values(detector, answers)) for name, answers in traces.sets.items()}


def _spread(values: Floats) -> Spread:
    return Spread(*(_short(quantile) for quantile in np.quantile(values, [0.1, 0.5, 0.9])))


def _short(value: float) -> float:
    """Six significant digits: what a picture needs."""
    return float(f"{value:.6g}")
