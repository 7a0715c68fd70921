"""What an audit found, as it is kept and shown. Pure records; the page is made from them alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from d2unlearn.attacks.reading import Measure, Setting
from d2unlearn.errors import ArtifactError, DataError
from d2unlearn.runtime import read_json
from d2unlearn.schema import ClaimResult, MetricResult, Verdict
from d2unlearn.serialization import record_from_json

_VERSION = 1


@dataclass(frozen=True)
class SettingResult:
    """One setting of an attack, on one set of rows. values: the mean of each model that it was made on, with its interval.

    Models are `artifact`, `original`, `oracle`, and `never_seen`: the artifact on facts that it was never shown. `difference`:
    artifact minus control, with the ends of two one-sided 95 % intervals; NaN where nothing is compared. `told_apart`: for
    scores of forgotten rows, `metrics.membership.membership_auc` of the artifact's against each control's.
    """

    setting: Mapping[str, Setting]
    measure: Measure
    rows: str
    values: Mapping[str, MetricResult]
    difference: float
    low: float
    high: float
    told_apart: Mapping[str, MetricResult] = field(default_factory=dict)


@dataclass(frozen=True)
class AttackResult:
    """An attack as far as it counts for one claim (empty for none). `guarded`: whether answers were the gate's.

    verdict: its own, adjusted for the others of the claim. `deciding`: index of the setting that decides, None for none.
    `reason`: why it is not shown.
    """

    name: str
    title: str
    shows: str
    claim: str
    guarded: bool
    verdict: Verdict
    reason: str
    deciding: int | None
    settings: tuple[SettingResult, ...]


@dataclass(frozen=True)
class ToldExample:
    """A forgotten row that was told. `said`: the model's words; `setting`: how it was asked; `guarded`: behind the gate."""

    attack: str
    setting: str
    guarded: bool
    question: str
    answer: str
    said: str


@dataclass(frozen=True)
class AuditedModel:
    """A model of the audit: where it stood, and the hash of its weights."""

    source: str
    weights: str


@dataclass(frozen=True)
class AuditedRows:
    """A set of rows: how many, of how many groups, and their hash."""

    n: int
    groups: int
    content: str


@dataclass(frozen=True)
class Audit:
    """The result file of `d2unlearn audit` (`audit.json`).

    control: what the artifact is held against: `oracle`, `never_seen` or `none`. `left_out`: attacks that were not made, with
    the reason. `guard`: of untouched weights that stood in the gate's place, as it is named. `judging`: hash of the wordings
    that judged. `redacted`: no texts were kept, so there are no examples. Readings row by row are in `attacks/NAME.json` beside
    it. `promised`: the rate of false refusals that gate or guard promises, None for none; `rules`: those of the verdict;
    `unmade`: of attacks that were made, what these rows did not allow, each in a sentence.
    """

    label: str
    level: str
    models: Mapping[str, AuditedModel]
    gate: str
    control: str
    rows: Mapping[str, AuditedRows]
    margins: Mapping[str, float]
    judging: str
    claims: tuple[ClaimResult, ...]
    attacks: tuple[AttackResult, ...]
    examples: tuple[ToldExample, ...]
    left_out: Mapping[str, str]
    seed: int
    warnings: tuple[str, ...] = ()
    redacted: bool = False
    guard: str = ""
    promised: float | None = None
    rules: int = 1
    unmade: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    version: int = _VERSION


def read_audit(path: Path) -> Audit:
    """Read an audit's file. Raises `DataError` when it is missing, cut short, or holds something else."""
    advice = "give the audit.json that `d2unlearn audit` wrote"
    try:
        value = read_json(path)
    except ArtifactError as error:
        raise DataError(f"{error}; {advice}") from None
    if value.get("version") != _VERSION:
        raise DataError(f"{path} is no audit of version {_VERSION}; run `d2unlearn audit` again")
    return record_from_json(Audit, value, str(path), "an audit", advice)
