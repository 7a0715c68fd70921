"""What `analyze` found: the records of `analysis.json`, and the file itself. Imports no torch.

A score is what a detector says of a request, turned so that higher means forgotten. Values are in the detector's own unit and
sign.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from d2unlearn.errors import ArtifactError, DataError
from d2unlearn.runtime import read_json, write_json
from d2unlearn.schema import Kind
from d2unlearn.serialization import record_from_json, record_to_json

ModelRole = Literal["original", "model", "oracle"]
"""`model`: the one on trial; `original`: before unlearning; `oracle`: one that never saw the forget set."""
Direction = Literal["higher", "lower"]
Placement = Literal["conformal", "raised"]
"""Where a threshold lies: where calibration alone puts it, or raised into the gap to forget requests, as the gate does."""
_ADVICE = "give the analysis.json that `d2unlearn analyze` wrote"


@dataclass(frozen=True)
class Estimate:
    """A number with its 95% bootstrap interval. All NaN when nothing could be scored."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class SetSummary:
    """A named set of requests. `unscored`: how many had no prompt, so that no detector could be read."""

    name: str
    kind: Kind
    n: int
    unscored: int


@dataclass(frozen=True)
class DetectorSummary:
    """`label` and `reads` say in words what it is; `forgotten`: where its values go for forgotten requests.

    `fitted`: it needs retained examples to be computed at all, beside those that set a threshold.
    """

    name: str
    label: str
    reads: str
    forgotten: Direction
    fitted: bool


@dataclass(frozen=True)
class Separation:
    """How well one detector tells a forget set from a retained one.

    `statistics`: by the names of `roc.ROC_STATISTICS`. `ahead`: its AUROC less the reference detector's, on the same draws.
    """

    index: str
    forget: str
    retain: str
    statistics: Mapping[str, Estimate]
    ahead: Estimate


@dataclass(frozen=True)
class Refusals:
    """What a threshold at `rate` false refusals, set on calibration requests, refuses of each set.

    A raised threshold has seen the main forget set, so that what it refuses of that one is too good. `threshold`: of the
    score, above which a request is refused; intervals take it as given. `more`: by set, how much more of it is refused than
    by the reference detector, on the same draws.
    """

    index: str
    rate: float
    threshold: float
    refused: Mapping[str, Estimate]
    more: Mapping[str, Estimate]
    placement: Placement = "conformal"


@dataclass(frozen=True)
class Spread:
    """10%, 50% and 90% quantiles."""

    low: float
    middle: float
    high: float


@dataclass(frozen=True)
class LayerEnergies:
    """Free energy read at the embeddings (first) and after each layer through the final norm and the LM head, nats.

    `positions`: the mean over so many first positions. `spread`: of each set, layer by layer; `auroc`: forget against retain.
    """

    positions: int
    spread: Mapping[str, tuple[Spread, ...]]
    auroc: tuple[Estimate, ...]


@dataclass(frozen=True)
class ModelTrial:
    """One model under every detector. `values`: detector, then set, then one value a request.

    `layers` is empty with a reason in `no_layers` where the model's layers cannot be read one by one.
    """

    role: ModelRole
    model: str
    values: Mapping[str, Mapping[str, tuple[float, ...]]]
    separations: tuple[Separation, ...]
    refusals: tuple[Refusals, ...]
    layers: tuple[LayerEnergies, ...]
    no_layers: str = ""


@dataclass(frozen=True)
class AnswerEnergies:
    """One model's greedy answer, token by token, with the free energy (nats) that each was chosen from."""

    role: ModelRole
    tokens: tuple[str, ...]
    energies: tuple[float, ...]


@dataclass(frozen=True)
class AnsweredQuestion:
    """One question of a set, and what each model answered.

    `choice`: the set's typical request (its reference score is the median), or its most misleading one.
    """

    set_name: str
    kind: Kind
    choice: Literal["typical", "most misleading"]
    question: str
    told: tuple[AnswerEnergies, ...]


@dataclass(frozen=True)
class DetectorCost:
    """What a detector costs beyond plain generation of the answer.

    `microseconds`: of processor time a request; `share`: of the time that generating the answer takes; `positions`: how many it
    reads of an answer, on average; `working_bytes`: held for a moment at each position of a request, beside its logits;
    `kept_bytes`: kept with the gate (what was fitted).
    """

    index: str
    microseconds: float
    share: float
    positions: float
    working_bytes: int
    kept_bytes: int


@dataclass(frozen=True)
class CurvePoint:
    """With n calibration requests drawn at random again and again: mean, and where 80% of the draws lie (low, high).

    `guaranteed`: n suffices for the rate; if not, the threshold is the largest score seen. A fitted detector is fitted on half.
    """

    index: str
    rate: float
    n: int
    guaranteed: bool
    false_refusals: Estimate
    missed: Estimate


@dataclass(frozen=True)
class PerturbationResult:
    """A detector after something changed that has nothing to do with unlearning.

    `auroc`: forget against retain. `false_refusals`, `missed`: with the threshold as calibrated before the change.
    """

    disturbance: str
    index: str
    auroc: Estimate
    false_refusals: Estimate
    missed: Estimate


@dataclass(frozen=True)
class Analysis:
    """The result file of `d2unlearn analyze`.

    `reference`: the detector that the others are compared with; `gate_score`: the score that the model's gate uses, if any.
    The first set of kind forget and the first of kind retain are the main ones. `disturbances`: name and what was done.
    `generation_ms`: processor time of generating an answer, `answer_tokens`: its mean length. `n_fit`, `n_calibration`:
    retained requests that detectors were fitted on, and others that set the thresholds.
    """

    model: str
    label: str
    reference: str
    gate_score: str | None
    sets: tuple[SetSummary, ...]
    indices: tuple[DetectorSummary, ...]
    models: tuple[ModelTrial, ...]
    asked: tuple[AnsweredQuestion, ...]
    costs: tuple[DetectorCost, ...]
    generation_ms: float
    answer_tokens: float
    curves: tuple[CurvePoint, ...]
    disturbances: Mapping[str, str]
    disturbed: tuple[PerturbationResult, ...]
    n_fit: int
    n_calibration: int
    settings: Mapping[str, object]
    version: int = 1


def write_analysis(path: Path, analysis: Analysis) -> None:
    """Write the file, whole or not at all."""
    write_json(path, record_to_json(analysis, "analysis"))


def read_analysis(path: str | Path) -> Analysis:
    """Read an analysis's file. Raises `DataError` when it is missing, cut short, or holds something else."""
    try:
        value = read_json(Path(path))
    except ArtifactError as error:
        raise DataError(f"{error}; {_ADVICE}") from None
    return record_from_json(Analysis, value, str(path), "an analysis", _ADVICE)
