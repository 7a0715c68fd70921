"""From what was read of one model's answers to its trial: separations, refusals, layers, calibration sizes, answers to look at.

Pure: numbers in, records out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from d2unlearn.analysis.detectors import INDICES, REFERENCE, Index
from d2unlearn.analysis.questions import Questions
from d2unlearn.analysis.recorder import LAYER_POSITIONS, Reads
from d2unlearn.analysis.records import (
    Asked,
    CurvePoint,
    Disturbed,
    LayerEnergies,
    ModelRole,
    ModelTrial,
    Spread,
    Told,
)
from d2unlearn.analysis.statistics import (
    Draws,
    Judge,
    Judged,
    calibration_curve,
    estimate,
    refusals,
    refused_share,
    separations,
    statistics,
)
from d2unlearn.quantities import LogSumExp
from d2unlearn.schema import Kind

Floats = NDArray[np.float64]
SIZES = (20, 50, 100, 200, 400, 800)
"""Numbers of calibration requests that thresholds are tried with."""
N_CHOICES = 200
N_FITTED_CHOICES = 25
"""Random choices of so many calibration requests; fewer where each means fitting anew."""
NO_LAYERS = "the model's layers and the norm behind them could not be told apart"


@dataclass(frozen=True)
class Answered:
    """What was read of a model's answers: by set, and on calibration rows: those to fit on and those that set thresholds."""

    sets: Mapping[str, Reads]
    fit: Reads
    threshold: Reads

    def fitted(self) -> dict[str, Index]:
        """Every index, fitted to this model."""
        return {name: index.fit(self.fit) for name, index in INDICES.items()}

    def judged(self, index: Index) -> Judged:
        return Judged(index.evidence(self.threshold), {name: index.evidence(reads) for name, reads in self.sets.items()})


def model_trial(
    role: ModelRole,
    model: str,
    answered: Answered,
    fitted: Mapping[str, Index],
    questions: Questions,
    draws: Mapping[str, Draws],
    reference: str = REFERENCE,
) -> ModelTrial:
    """Every index on every pair of a forget and a retained set, and what its thresholds would refuse."""
    judged = {name: answered.judged(index) for name, index in fitted.items()}
    found = []
    for forget in questions.named("forget"):
        for retain in questions.named("retain"):
            evidence = {name: (each.sets[retain], each.sets[forget]) for name, each in judged.items()}
            found += separations(evidence, draws[retain], draws[forget], reference, (forget, retain))
    return ModelTrial(
        role,
        model,
        {name: _values(index, answered) for name, index in fitted.items()},
        tuple(found),
        tuple(refusals(judged, draws, reference, questions.main("forget").name)),
        tuple(layer_energies(answered, questions, draws, n) for n in (1, LAYER_POSITIONS)) if answered.fit.layers else (),
        "" if answered.fit.layers else NO_LAYERS,
    )


def layer_energies(answered: Answered, questions: Questions, draws: Mapping[str, Draws], positions: int) -> LayerEnergies:
    """Energies by layer, as means over the first positions of each answer; forget against retain at each layer."""
    means = {
        name: np.array([request[:positions].mean(axis=0) for request in reads.layers]) for name, reads in answered.sets.items()
    }
    forget, retain = questions.main("forget").name, questions.main("retain").name
    sides = zip(means[retain].T, means[forget].T, strict=True)
    found = [statistics(low, high, draws[retain], draws[forget])["auroc"] for low, high in sides]
    spread = {name: tuple(_spread(layer) for layer in values.T) for name, values in means.items()}
    return LayerEnergies(positions, spread, tuple(estimate(each) for each in found))


def calibration_curves(answered: Answered, questions: Questions, seed: int) -> list[CurvePoint]:
    """False refusals and misses of every index at every number of calibration requests, of those that are there."""
    pool = answered.fit.joined(answered.threshold)
    retain, forget = (answered.sets[questions.main(kind).name] for kind in ("retain", "forget"))
    points = []
    for name, index in INDICES.items():
        judge = _refitted(index, pool, retain, forget) if index.fitted else _looked_up(index, pool, retain, forget)
        n_draws = N_FITTED_CHOICES if index.fitted else N_CHOICES
        points += calibration_curve(name, judge, len(pool), SIZES, fitted=index.fitted, n_draws=n_draws, seed=seed)
    return points


def disturbed(
    name: str,
    reads: Mapping[Kind, Reads],
    fitted: Mapping[str, Index],
    thresholds: Mapping[str, float],
    draws: Mapping[Kind, Draws],
) -> list[Disturbed]:
    """Every index on answers given under a disturbance. reads: under `forget` and `retain`; thresholds: from before it."""
    found = []
    for index, each in fitted.items():
        retain, forget = each.evidence(reads["retain"]), each.evidence(reads["forget"])
        false_refusals = refused_share(retain, thresholds[index], draws["retain"])
        missed = 1 - refused_share(forget, thresholds[index], draws["forget"])
        found.append(
            Disturbed(
                name,
                index,
                estimate(statistics(retain, forget, draws["retain"], draws["forget"])["auroc"]),
                estimate(false_refusals),
                estimate(missed),
            )
        )
    return found


Decode = Callable[[Sequence[int]], Sequence[str]]


def asked(
    questions: Questions, answered: Mapping[ModelRole, Answered], reference: Index, decode: Mapping[ModelRole, Decode]
) -> list[Asked]:
    """Of each set the typical and the most misleading request to the model on trial, as every model answered it."""
    found = []
    for each in questions.sets:
        evidence = reference.evidence(answered["model"].sets[each.name])
        order = np.argsort(evidence, kind="stable")
        worst = order[0] if each.kind == "forget" else order[-1]
        for choice, row in (("typical", order[len(order) // 2]), ("most misleading", worst)):
            told = tuple(_told(role, of.sets[each.name], int(row), decode[role]) for role, of in answered.items())
            found.append(Asked(each.name, each.kind, choice, each.examples[int(row)].question, told))  # type: ignore[arg-type]
    return found


def _told(role: ModelRole, reads: Reads, row: int, decode: Decode) -> Told:
    energies = -reads.values[LogSumExp()][row]
    return Told(role, tuple(decode(reads.token_ids[row])), tuple(_short(energy) for energy in energies))


def _refitted(index: Index, pool: Reads, retain: Reads, forget: Reads) -> Judge:
    def judge(fit: NDArray[np.intp], threshold: NDArray[np.intp]) -> tuple[Floats, Floats, Floats]:
        each = index.fit(pool.take(fit.tolist()))
        return each.evidence(pool.take(threshold.tolist())), each.evidence(retain), each.evidence(forget)

    return judge


def _looked_up(index: Index, pool: Reads, retain: Reads, forget: Reads) -> Judge:
    calibration, low, high = index.evidence(pool), index.evidence(retain), index.evidence(forget)
    return lambda _, threshold: (calibration[threshold], low, high)


def _values(index: Index, answered: Answered) -> dict[str, tuple[float, ...]]:
    return {name: tuple(_short(value) for value in index.values(reads)) for name, reads in answered.sets.items()}


def _spread(values: Floats) -> Spread:
    return Spread(*(_short(each) for each in np.quantile(values, [0.1, 0.5, 0.9])))


def _short(value: float) -> float:
    """Six significant digits: what a picture needs."""
    return float(f"{value:.6g}")
