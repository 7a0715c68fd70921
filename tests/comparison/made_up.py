"""Records of runs that nobody made: a few questions by a few authors, numbers chosen by hand."""

from __future__ import annotations

import math
from typing import Any

from d2unlearn.comparison.records import NO_COST, RunResult, SetResult, TrainingCost, Trial, TuningResult
from d2unlearn.schema import Kind, MetricResult, RelearningResult

GROUPS = ("0", "0", "1", "1")


def metric(name: str, value: float) -> MetricResult:
    return MetricResult(name, value, value, value, 4, 0, "neither")


def set_result(name: str, kind: Kind, strength: list[float], refused: list[float] | None, rouge: dict[str, float]) -> SetResult:
    """Four questions of two authors."""
    values = {"extraction_strength": tuple(strength), **{metric: (value,) * 4 for metric, value in rouge.items()}}
    metrics = [metric("extraction_strength", sum(strength) / len(strength)), metric("answer_probability", 0.5)]
    if refused is not None:
        values["guarded_refusal_rate"] = tuple(refused)
        metrics.append(metric("guarded_refusal_rate", sum(refused) / len(refused)))
    return SetResult(name, kind, len(strength), tuple(metrics), GROUPS, values)


def at_worst(choice: str, value: float) -> RelearningResult:
    """One choice of rows, relearned for 80 steps with two learning rates."""
    return RelearningResult(choice, 1, {"0": metric("p", 0.01), "80": metric("p", value)}, (1e-4, 5e-4), {"80": 1e-4})


def in_other_words(told: list[float], table: str = "0a1b2c3d") -> list[SetResult]:
    """Four questions of two authors, asked in 49 wordings of two families; the second family tells nothing."""
    values = {"any": tuple(told), "exam": tuple(told), "typos": (0.0,) * 4}
    shares = tuple(metric(name, sum(some) / len(some)) for name, some in values.items())
    return [SetResult(f"other_words.49.{table}", "forget", 4, shares, GROUPS, values)]


def run_result(entry: str, seed: int, forget: list[float], retain: list[float], **changes: Any) -> RunResult:
    """One run. `refused`: (forget, retain) refusals; `rouge`: overlap of all answers with the truth, by metric.

    `returned`: what 20 steps of relearning bring back, as older results say it; `worst`: what comes back at the worst learning
    rate, by choice of rows; `reworded`: `in_other_words`; `seconds`, `bytes`.
    """
    kinds: dict[str, Any] = {"original": "as_is", "oracle": "as_is", "input_classifier": "guard"}
    refused, rouge = changes.get("refused", (None, None)), changes.get("rouge", {})
    returned, seconds = changes.get("returned"), changes.get("seconds")
    at = {} if returned is None else {"0": metric("p", 0.01), "20": metric("p", returned)}
    older = (RelearningResult("first", 1, at),) if at else ()
    return RunResult(
        key=f"ten/{entry}/seed-{seed}",
        identity="same",
        split="ten",
        contestant=entry,
        kind=kinds.get(entry, "method"),
        seed=seed,
        parameters={"gamma": 0.5},
        learning_rate=1e-3,
        sets=(
            set_result("forget", "forget", forget, refused[0], rouge),
            set_result("retain", "retain", retain, refused[1], rouge),
        ),
        separation=(metric("auroc_gate_forget_vs_retain", 0.9),) if refused[0] is not None else (),
        suite=tuple(metric(name, value) for name, value in changes.get("suite", {}).items()),
        score_name="window-4" if refused[0] is not None else None,
        threshold=-3.0 if refused[0] is not None else None,
        gate_reason=changes.get("gate_reason", ""),
        comebacks=(*older, *(at_worst(choice, value) for choice, value in changes.get("worst", {}).items())),
        cost=NO_COST if seconds is None else TrainingCost(9 * seconds, seconds, changes.get("bytes", math.nan), "cpu"),
        machine="made up",
        versions={"d2unlearn": "0"},
        reworded=tuple(changes.get("reworded", ())),
    )


def tuning_result(entry: str, *scores: float) -> TuningResult:
    """A tuning whose trials differ in their scores."""
    trials = tuple(
        Trial(
            number, {"gamma": 0.1 * number}, score, {"forget_extraction_strength": 0.123456}, 1.0, "" if score else "destroyed"
        )
        for number, score in enumerate(scores)
    )
    chosen = max(range(len(scores)), key=lambda number: scores[number])
    key = f"ten/{entry}/tune"
    return TuningResult(
        key, "same", "ten", entry, "method", 0, trials, chosen, {"extraction_strength": 1.0}, 2, 3, "made up", {}
    )
