"""What is kept of the trials of energy, and its numbers over seeds.

A number is the mean over seeds, and its brackets reach from the lowest to the highest end of the seeds' 95% intervals. Clearly
means: in every seed the interval of the difference leaves 0 out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from d2unlearn.analysis.page_tables import wrong_share
from d2unlearn.analysis.records import Analysis, CurvePoint, DetectorCost, Estimate, ModelRole, PerturbationResult, Placement
from d2unlearn.analysis.significance import Significance, pair_of, refusals_of, trial_of, wordings
from d2unlearn.report.notation import fixed
from d2unlearn.serialization import record_from_json, record_to_json

ROLES: Mapping[ModelRole, str] = {
    "original": "the original",
    "model": "the unlearned",
    "oracle": "the oracle",
}
Write = Callable[[float], str]
ESTIMATE = ("value", "low", "high")


@dataclass(frozen=True)
class Kept:
    """What is kept of an analysis, and how long it took: seconds of processor time and by the clock."""

    variant: str
    seed: int
    hardware: str
    seconds: Mapping[str, int]
    analysis: Analysis


def keep(kept: Kept, path: Path) -> None:
    """Write the file: estimates as [value, low, high], numbers to four digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(packed(record_to_json(kept, "kept")), separators=(",", ":"))
    path.write_text(text.replace('},{"', '},\n{"') + "\n", encoding="utf-8")


def read_kept(path: Path) -> Kept:
    """The inverse of `keep`."""
    return record_from_json(
        Kept, unpacked(json.loads(path.read_text(encoding="utf-8"))), str(path), "a kept trial", "keep it again"
    )


def packed(value: Any) -> Any:
    if isinstance(value, dict):
        inside = {key: packed(each) for key, each in value.items()}
        return list(inside.values()) if tuple(inside) == ESTIMATE else inside
    if isinstance(value, list):
        return [packed(each) for each in value]
    return (float(f"{value:.4g}") if abs(value) >= 1 else round(value, 5)) if isinstance(value, float) else value


def unpacked(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: unpacked(each) for key, each in value.items()}
    if isinstance(value, list) and len(value) == len(ESTIMATE) and not any(isinstance(each, dict) for each in value):
        return dict(zip(ESTIMATE, value, strict=True))
    return [unpacked(each) for each in value] if isinstance(value, list) else value


def read_trials(results: Path) -> list[Kept]:
    """The kept trials, by seed."""
    return sorted((read_kept(path) for path in (results / "energy").glob("full-seed-*.json")), key=lambda each: each.seed)


def over(estimates: Iterable[Estimate]) -> Estimate:
    """Mean, lowest low, highest high."""
    each = list(estimates)
    return Estimate(mean(e.value for e in each), min(e.low for e in each), max(e.high for e in each))


def text_of(estimates: Iterable[Estimate], write: Write = fixed) -> str:
    """`0.992 [0.986, 0.997]`; the number alone where the interval is as narrow as what is written."""
    found = over(estimates)
    value, low, high = write(found.value), write(found.low), write(found.high)
    return value if value == low == high else f"{value} [{low}, {high}]"


def agreed(by_seed: Iterable[Significance]) -> Significance:
    """Better (worse) where it is so in every seed."""
    found = set(by_seed)
    return found.pop() if len(found) == 1 else ""


def area(trials: Sequence[Analysis], index: str, pair: tuple[str, str], role: ModelRole = "model") -> list[Estimate]:
    return [pair_of(trial_of(each, role), *pair)[index].statistics["auroc"] for each in trials]


def wrong(trials: Sequence[Analysis], index: str, name: str, rate: float, placement: Placement = "conformal") -> list[Estimate]:
    """Missed of a forget set, refused of a retained one."""
    kind = next(each.kind for each in trials[0].sets if each.name == name)
    found = [refusals_of(trial_of(each), rate, placement)[index].refused[name] for each in trials]
    return [wrong_share(each, kind) for each in found]


def named(trials: Sequence[Analysis]) -> dict[str, str]:
    return {index.name: index.label for index in trials[0].indices}


def pairs_of(trials: Sequence[Analysis]) -> tuple[tuple[str, str], ...]:
    return wordings(trials[0].sets)


def disturbed(trials: Sequence[Analysis], disturbance: str, index: str) -> list[PerturbationResult]:
    return [e for each in trials for e in each.disturbed if (e.disturbance, e.index) == (disturbance, index)]


def points(trials: Sequence[Analysis], index: str, n: int, rate: float) -> list[CurvePoint]:
    return [e for each in trials for e in each.curves if (e.index, e.n, e.rate) == (index, n, rate)]


def cost_of(analysis: Analysis, index: str) -> DetectorCost:
    """What one index costs."""
    return next(each for each in analysis.costs if each.index == index)


def range_of(values: Sequence[float], unit: str) -> str:
    """The lowest and the highest: whole numbers from 10 on, two digits below."""
    low, high = (f"{value:,.0f}" if value >= 10 else f"{value:.2g}" for value in (min(values), max(values)))
    return f"{low}{unit}" if low == high else f"{low} to {high}{unit}"
