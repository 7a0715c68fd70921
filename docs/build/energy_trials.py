"""The kept trials of energy, and their numbers over seeds.

A number is the mean over seeds, and its brackets reach from the lowest to the highest end of the seeds' 95% intervals. Clearly
means: in every seed the interval of the difference leaves 0 out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from d2unlearn.analysis.page_tables import wrong_share
from d2unlearn.analysis.records import Analysis, Estimate, ModelRole, Placement
from d2unlearn.analysis.significance import Significance, pair_of, refusals_of, trial_of
from d2unlearn.report.notation import fixed
from d2unlearn.serialization import record_from_json

ROLES: Mapping[ModelRole, str] = {
    "original": "the original",
    "model": "the unlearned",
    "oracle": "the oracle",
}


class KeptTrial(NamedTuple):
    """What `experiments/energy_trial.py` wrote of one seed. seconds: by the clock, and of `processor` time."""

    seed: int
    hardware: str
    seconds: Mapping[str, int]
    analysis: Analysis


def read_trials(results: Path) -> list[KeptTrial]:
    """The kept trials, by seed."""
    return sorted((_read(path) for path in (results / "energy").glob("full-seed-*.json")), key=lambda kept: kept.seed)


def _read(path: Path) -> KeptTrial:
    kept = json.loads(path.read_text(encoding="utf-8"))
    analysis = record_from_json(Analysis, _unpacked(kept["analysis"]), str(path), "an analysis", "keep it again")
    return KeptTrial(kept["seed"], kept["hardware"], kept["seconds"], analysis)


def _unpacked(value: Any) -> Any:
    """With [value, low, high] as an estimate."""
    if isinstance(value, dict):
        return {key: _unpacked(inside) for key, inside in value.items()}
    if isinstance(value, list) and len(value) == 3 and not any(isinstance(inside, dict) for inside in value):
        return dict(zip(("value", "low", "high"), value, strict=True))
    return [_unpacked(inside) for inside in value] if isinstance(value, list) else value


def over_seeds(estimates: Iterable[Estimate], write: Callable[[float], str] = fixed) -> str:
    """`0.992 [0.986, 0.997]`; the number alone where the interval is as narrow as what is written."""
    by_seed = list(estimates)
    value, low, high = (
        write(number) for number in (mean(e.value for e in by_seed), min(e.low for e in by_seed), max(e.high for e in by_seed))
    )
    return value if value == low == high else f"{value} [{low}, {high}]"


def agreed(by_seed: Iterable[Significance]) -> Significance:
    """Better (worse) where it is so in every seed."""
    found = set(by_seed)
    return found.pop() if len(found) == 1 else ""


def auroc_of(trials: Sequence[Analysis], detector: str, pair: tuple[str, str], role: ModelRole = "model") -> list[Estimate]:
    return [pair_of(trial_of(trial, role), *pair)[detector].statistics["auroc"] for trial in trials]


def wrong_shares(
    trials: Sequence[Analysis], detector: str, name: str, rate: float, placement: Placement = "conformal"
) -> list[Estimate]:
    """Missed of a forget set, refused of a retained one."""
    kind = next(named.kind for named in trials[0].sets if named.name == name)
    refused = [refusals_of(trial_of(trial), rate, placement)[detector].refused[name] for trial in trials]
    return [wrong_share(share, kind) for share in refused]
