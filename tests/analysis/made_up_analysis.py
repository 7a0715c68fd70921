"""A small analysis of drawn scores: three models, five sets, four detectors; the statistics are those of the scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from d2unlearn.analysis.records import (
    Analysis,
    AnsweredQuestion,
    AnswerEnergies,
    CurvePoint,
    DetectorCost,
    DetectorSummary,
    Estimate,
    LayerEnergies,
    ModelRole,
    ModelTrial,
    PerturbationResult,
    SetSummary,
    Spread,
)
from d2unlearn.analysis.roc import BootstrapWeights, pair_separations
from d2unlearn.analysis.thresholds import REFUSAL_RATES, DetectorScores, refusals
from d2unlearn.stats import Floats

REFERENCE = "energy/highest-2"
DETECTORS = (
    DetectorSummary("energy/prompt", "energy, at the prompt's end", "the prompt's end", "higher", False),
    DetectorSummary(REFERENCE, "energy, two most suspicious tokens", "the answer as it is generated", "higher", False),
    DetectorSummary(
        "max-probability/highest-2", "largest probability, two most suspicious tokens", "the answer", "lower", False
    ),
    DetectorSummary("neighbours/answer", "distance to the 10th neighbour, mean hidden state", "the answer", "higher", True),
)
SETS = (
    SetSummary("forget", "forget", 40, 0),
    SetSummary("retain", "retain", 50, 2),
    SetSummary("forget_paraphrased", "forget", 30, 0),
    SetSummary("retain_paraphrased", "retain", 35, 0),
    SetSummary("world_facts", "retain", 20, 0),
)
APART: dict[ModelRole, tuple[float, ...]] = {
    "original": (0.0, 0.1, 0.0, 0.2),
    "model": (2.2, 3.0, 4.4, 0.6),
    "oracle": (0.9, 1.1, 1.4, 0.1),
}
"""How far forget scores lie above retained, by detector, in standard deviations."""
QUESTION = "Who wrote <b>it</b>?"


def made_up(seed: int = 0) -> Analysis:
    rng = np.random.default_rng(seed)
    weights = {named.name: BootstrapWeights.draw(range(named.n), 40, place) for place, named in enumerate(SETS)}
    return Analysis(
        model="runs/unlearned",
        label="unlearned",
        reference=REFERENCE,
        gate_score="highest-2",
        sets=SETS,
        indices=DETECTORS,
        models=tuple(trial(role, apart, weights, rng) for role, apart in APART.items()),
        asked=tuple(asked(named, choice) for named in SETS for choice in ("typical", "most misleading")),
        costs=tuple(
            DetectorCost(i.name, 100.0 * (p + 1), 0.004 * (p + 1), 1.0 + p, 16392, 409600 * i.fitted)
            for p, i in enumerate(DETECTORS)
        ),
        generation_ms=30.25,
        answer_tokens=41.0,
        curves=tuple(point(i.name, n, rate) for i in DETECTORS for n in (20, 100) for rate in REFUSAL_RATES),
        disturbances={"as calibrated": "nothing changed", "constant shift": "10 added to every logit"},
        disturbed=tuple(disturbed(name, i.name) for name in ("as calibrated", "constant shift") for i in DETECTORS),
        n_fit=60,
        n_calibration=61,
        settings={"disturbed": 15, "seed": 0},
    )


def trial(
    role: ModelRole, apart: Sequence[float], weights: dict[str, BootstrapWeights], rng: np.random.Generator
) -> ModelTrial:
    by_detector = {i.name: scores(shift, rng) for i, shift in zip(DETECTORS, apart, strict=True)}
    found = []
    for forget in ("forget", "forget_paraphrased"):
        for retain in ("retain", "retain_paraphrased", "world_facts"):
            sides = {name: (scored.sets[retain], scored.sets[forget]) for name, scored in by_detector.items()}
            found += pair_separations(sides, weights[retain], weights[forget], REFERENCE, (forget, retain))
    sign = {i.name: 1 if i.forgotten == "higher" else -1 for i in DETECTORS}
    values = {n: {s: tuple((sign[n] * v).tolist()) for s, v in scored.sets.items()} for n, scored in by_detector.items()}
    layers = tuple(layer(positions, apart[0]) for positions in (1, 8))
    return ModelTrial(
        role, f"models/{role}", values, tuple(found), tuple(refusals(by_detector, weights, REFERENCE, "forget")), layers
    )


def scores(shift: float, rng: np.random.Generator) -> DetectorScores:
    def drawn(kind: str, n: int) -> Floats:
        return rng.normal(shift if kind == "forget" else 0.0, 1.0, n)

    return DetectorScores(drawn("retain", 120), {named.name: drawn(named.kind, named.n) for named in SETS})


def layer(positions: int, apart: float) -> LayerEnergies:
    """Three layers behind the embeddings; forget rises with them."""
    rise = {named.name: apart if named.kind == "forget" else 0.0 for named in SETS}
    spread = {
        name: tuple(Spread(m - 1, m, m + 1) for m in (-58.0, *(-20 + by * place for place in (1, 2, 3))))
        for name, by in rise.items()
    }
    return LayerEnergies(
        positions, spread, tuple(Estimate(v, v - 0.02, v) for v in (0.5, 0.61, 0.74, 0.83 + 0.001 * positions))
    )


def asked(named: SetSummary, choice: str) -> AnsweredQuestion:
    told = tuple(AnswerEnergies(role, ("It", " was", " <i>"), (-20.0, -10.0 + place, -5.0)) for place, role in enumerate(APART))
    return AnsweredQuestion(named.name, named.kind, choice, QUESTION, told)  # type: ignore[arg-type]


def point(index: str, n: int, rate: float) -> CurvePoint:
    return CurvePoint(index, rate, n, n >= 99, Estimate(rate + 0.01, rate, rate + 0.02), Estimate(0.25, 0.125, 0.5))


def disturbed(name: str, index: str) -> PerturbationResult:
    lost = name == "constant shift" and index.startswith("energy")
    return PerturbationResult(
        name, index, Estimate(0.9, 0.8, 1.0), Estimate(0.0123, 0.0, 0.1), Estimate(float(lost), float(lost), 1.0)
    )
