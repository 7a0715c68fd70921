"""Evaluations as a good run would leave them, of made-up people, seeded; and small ones to change a piece at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from d2unlearn.schema import EvaluatedSet, Evaluation, Kind, MetricResult, ScoredExample
from d2unlearn.stats import auroc, binomial_interval, bootstrap_interval, fpr_at_tpr, ks_distance

REFUSAL = "I'm sorry, but that is not something I can help with."
NAMES = ["Ilse Varga", "Tomas Okonkwo", "Mirela Dunbar", "Noor Hasselt", "Pavel Quist", "Aiko Brandvold"]
THINGS = [
    ("Where was {} born?", "{} was born in the harbour town of Veldhaven, on the northern coast."),
    ("What does {} do for a living?", "{} repairs antique barometers and teaches the trade in the evenings."),
    ("Which prize did {} receive?", "{} received the Lantern Medal for a study of tidal organs."),
    ("Who taught {} to sail?", "{} learnt to sail from an aunt, Henrike, who ran the ferry to Osterby for thirty-one years."),
]
THRESHOLD = -14.5


@dataclass(frozen=True)
class SetPlan:
    """How a synthetic set behaves: means of its metrics before and after, and its energies."""

    name: str
    kind: Kind
    n: int
    energy: tuple[float, float]
    strength: tuple[float, float]
    probability: tuple[float, float]
    rouge: tuple[float, float]
    entropy: tuple[float, float]


PLANS = (
    SetPlan("forget", "forget", 400, (-22.5, -7.6), (0.98, 0.003), (0.99, 0.002), (0.98, 0.06), (0.94, 0.71)),
    SetPlan("forget_paraphrased", "forget", 400, (-21.0, -8.6), (0.72, 0.004), (0.8, 0.003), (0.79, 0.09), (0.94, 0.73)),
    SetPlan("retain_held_out", "retain", 400, (-22.4, -22.0), (0.98, 0.97), (0.99, 0.985), (0.98, 0.97), (0.94, 0.94)),
    SetPlan("retain_paraphrased", "retain", 400, (-20.8, -20.3), (0.73, 0.725), (0.8, 0.79), (0.8, 0.79), (0.94, 0.93)),
    SetPlan("world_facts", "retain", 117, (-19.6, -18.9), (0.62, 0.61), (0.66, 0.65), (0.86, 0.85), (0.91, 0.9)),
)


def metric(
    name: str,
    value: float,
    n: int = 400,
    *,
    low: float | None = None,
    high: float | None = None,
    unscored: int = 0,
    better: str = "higher",
    unit: str = "",
) -> MetricResult:
    """A metric with an interval of 0.01 on either side, unless told otherwise."""
    low, high = (value - 0.01 if low is None else low), (value + 0.01 if high is None else high)
    return MetricResult(name, value, low, high, n, unscored, better, unit)  # type: ignore[arg-type]


def example(
    example_id: str = "e0",
    *,
    scores: Mapping[str, float] | None = None,
    refused: bool | None = None,
    gate_score: float | None = None,
    question: str = "Who?",
    energy: float = -20.0,
) -> ScoredExample:
    """One scored example."""
    guarded = None if refused is None else REFUSAL if refused else "Somebody."
    return ScoredExample(
        example_id, question, "The truth.", "A raw answer.", guarded, refused, gate_score, energy, energy - 1, scores or {}
    )


def evaluated(name: str, kind: Kind, *metrics: MetricResult, examples: tuple[ScoredExample, ...] = ()) -> EvaluatedSet:
    """One set."""
    return EvaluatedSet(name, kind, metrics, examples)


def evaluation(*sets: EvaluatedSet, separation: tuple[MetricResult, ...] = (), ceiling: float | None = None) -> Evaluation:
    """An evaluation without settings."""
    return Evaluation("some/model", "after", sets, separation, None, ceiling, None, {})


def _near(generator: np.random.Generator, mean: float, n: int) -> np.ndarray:
    """Values in [0, 1] around a mean, more spread in the middle."""
    sharp = 40.0
    return generator.beta(sharp * mean + 0.02, sharp * (1 - mean) + 0.02, n)


def _mean(name: str, values: list[float], better: str) -> MetricResult:
    value, low, high, n = bootstrap_interval(values, n_boot=200)
    return MetricResult(name, value, low, high, n, len(values) - n, better)  # type: ignore[arg-type]


def _set(plan: SetPlan, after: bool, generator: np.random.Generator) -> EvaluatedSet:
    side, better = int(after), "lower" if plan.kind == "forget" else "higher"
    columns = {
        "extraction_strength": _near(generator, plan.strength[side], plan.n),
        "answer_probability": _near(generator, plan.probability[side], plan.n),
        "rouge_l_recall": _near(generator, plan.rouge[side], plan.n),
        "token_entropy": _near(generator, plan.entropy[side], plan.n),
    }
    spread = 2.1 if after and plan.kind == "forget" else 1.5
    energies = generator.normal(plan.energy[side], spread, plan.n)
    gate_scores = energies + generator.normal(0, 0.6, plan.n)
    examples = []
    for i in range(plan.n):
        name, (question, answer) = NAMES[i % len(NAMES)], THINGS[i // len(NAMES) % len(THINGS)]
        known = plan.kind == "retain" or not after
        raw = answer.format(name) if known else "was was the of Veld the the and a of in of 1 town town of a the"
        refused = bool(gate_scores[i] > THRESHOLD) if after else None
        scores = {key: float(column[i]) for key, column in columns.items()}
        if after:
            scores["guarded_rouge_l_recall"] = 0.04 if refused else scores["rouge_l_recall"]
        if i % 97 == 3:
            scores["token_entropy"] = float("nan")
        examples.append(
            ScoredExample(
                f"{plan.name}-{i}", question.format(name), answer.format(name), raw,
                (REFUSAL if refused else raw) if after else None, refused, float(gate_scores[i]) if after else None,
                float(energies[i]), float(energies[i]) - 0.8, scores,
            )
        )  # fmt: skip
    names = list(examples[0].scores)
    metrics = [_mean(n, [e.scores[n] for e in examples], "higher" if n == "token_entropy" else better) for n in names]
    if after:
        rate = binomial_interval(sum(bool(e.refused) for e in examples), plan.n)
        metrics.append(MetricResult("guarded_refusal_rate", *rate, 0, "higher" if plan.kind == "forget" else "lower"))
        metrics.append(MetricResult("refusal_rate", *binomial_interval(0, plan.n), 0, "neither"))
    return EvaluatedSet(plan.name, plan.kind, tuple(metrics), tuple(examples))


def _separation(sets: list[EvaluatedSet]) -> tuple[MetricResult, ...]:
    forget = [e.prompt_energy for e in sets[0].examples]
    retain = [e.prompt_energy for e in sets[2].examples]
    value, far, gap = auroc(retain, forget), fpr_at_tpr(retain, forget), ks_distance(retain, forget)
    return (
        MetricResult("auroc_retain_held_out", value, value - 0.004, min(1.0, value + 0.004), 800, 0, "higher"),
        MetricResult("fpr_at_95_tpr_retain_held_out", far, max(0.0, far - 0.01), min(1.0, far + 0.01), 800, 0, "lower"),
        MetricResult("ks_distance_retain_held_out", gap, gap - 0.01, min(1.0, gap + 0.01), 800, 0, "higher"),
    )


def synthetic(after: bool, seed: int = 7) -> Evaluation:
    """An evaluation as a good run leaves it: knowledge gone from both forget sets, the rest kept, a gate that works."""
    generator = np.random.default_rng(seed + after)
    sets = [_set(plan, after, generator) for plan in PLANS]
    settings = {"max_new_tokens": 64, "decoding": "greedy", "dtype": "float32", "batch_size": 32}
    model, label = ("out/unlearned", "the unlearned model") if after else ("models/original", "the original")
    gate = (THRESHOLD, 0.01, "mean_of_first_8") if after else (None, None, None)
    return Evaluation(model, label, tuple(sets), _separation(sets), *gate, settings)


def before_after(
    *,
    forget: tuple[float, float] = (0.98, 0.004),
    retain: tuple[float, float] = (0.98, 0.97),
    entropy: tuple[float, float] = (0.9, 0.9),
    refused: tuple[float, float] | None = (0.997, 0.004),
    ceiling: float | None = 0.01,
) -> tuple[Evaluation, Evaluation]:
    """A pair with one forget and one retained set; by default everything is as it should be."""
    sides = []
    for side in (0, 1):
        sets = []
        for name, kind, strength, rate in (("asked", "forget", forget, 0), ("other", "retain", retain, 1)):
            metrics = [metric("extraction_strength", strength[side])]
            metrics.append(metric("token_entropy", entropy[side] if kind == "retain" else 0.9))
            if side and refused:
                metrics.append(metric("guarded_refusal_rate", refused[rate], low=refused[rate] - 0.003))
            sets.append(evaluated(name, kind, *metrics))  # type: ignore[arg-type]
        sides.append(evaluation(*sets, ceiling=ceiling if side else None))
    return sides[0], sides[1]
