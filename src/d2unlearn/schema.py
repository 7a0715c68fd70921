"""The records that cross package borders. Frozen, typed, and without behaviour beyond what their own fields imply."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Role = Literal["forget", "retain", "alternate", "retain_alternate"]
"""What a row is to a method. `alternate`: a forgotten question with another answer; `retain_alternate`: a retained one."""
Kind = Literal["forget", "retain"]
Better = Literal["lower", "higher", "neither"]
Verdict = Literal["holds", "does not hold", "not shown"]

MANIFEST_FILE = "d2_manifest.json"
"""Beside everything that a command makes: what was done, with which settings and inputs."""
GATE_FILE = "d2_gate.json"
GATE_COPY = "d2_gate"
"""Where `config.json` carries a copy of the gate."""
"""The calibrated gate, beside the weights it was calibrated on."""
EVALUATION_FILE = "evaluation.json"
ANALYSIS_FILE = "analysis.json"
AUDIT_FILE = "audit.json"
AUDIT_PAGE = "audit.html"

GUARDED_PREFIX = "guarded_"
"""Begins the name of a metric that is taken of guarded answers."""


class Message(NamedTuple):
    """One turn of a conversation. `role` is `system`, `user` or `assistant`."""

    role: str
    content: str


@dataclass(frozen=True)
class Example:
    """One row of a data set, whatever the file format was.

    `prompt` is the conversation before the answer, empty for a row of plain `text`; `answer` is what is learnt or
    forgotten (the whole text for plain rows). `source` is `FILE:LINE`. `group` says which rows belong together (one
    author, one document), `None` when unknown. `extra` holds the row's other columns.
    """

    example_id: str
    prompt: tuple[Message, ...]
    answer: str
    source: str
    group: str | None = None
    extra: Mapping[str, object] = field(default_factory=dict)

    @property
    def question(self) -> str:
        """The last user message; empty for a row of plain text."""
        return next((m.content for m in reversed(self.prompt) if m.role == "user"), "")


@dataclass(frozen=True)
class Tokens:
    """One rendered example: token ids and, for each, whether it belongs to the answer. Both of length L.

    `ends`: the last of them is the end token of the answer, which tells of the format and of nothing known.
    """

    example_id: str
    input_ids: tuple[int, ...]
    answer_mask: tuple[bool, ...]
    ends: bool = False

    @property
    def answer_length(self) -> int:
        """Answer tokens that are predicted, i.e. without one at position 0, which no logits precede."""
        return sum(self.answer_mask[1:])


class Interval(NamedTuple):
    """A value with a confidence interval. All NaN when nothing was scored; `n` is how many examples were."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class MetricResult:
    """One metric on one set of examples. `better` says which direction is good *for the kind of set it is on*.

    `reason`: why there is no value, where it is NaN and that needs saying.
    """

    name: str
    value: float
    low: float
    high: float
    n: int
    unscored: int
    better: Better
    unit: str = ""
    reason: str = ""


@dataclass(frozen=True)
class ScoredExample:
    """Everything measured on one example, raw and (when there is a gate) guarded.

    Likelihood metrics are teacher-forced on the true answer. `prompt_energy` is the free energy (nats) at the last
    prompt position; `answer_energy` its mean over the positions that predict the answer's tokens. `scores` maps a
    metric's name to its value, NaN where it could not be scored. `raw_answer` / `guarded_answer` are generated text.
    """

    example_id: str
    question: str
    answer: str
    raw_answer: str
    guarded_answer: str | None
    refused: bool | None
    gate_score: float | None
    prompt_energy: float
    answer_energy: float
    scores: Mapping[str, float]


@dataclass(frozen=True)
class EvaluatedSet:
    """One named set of examples: `kind` says whether the model should have forgotten it or kept it."""

    name: str
    kind: Kind
    metrics: tuple[MetricResult, ...]
    examples: tuple[ScoredExample, ...]


@dataclass(frozen=True)
class Evaluation:
    """The result file of `d2unlearn evaluate` (`evaluation.json`).

    `benchmark`: the suite that was run, empty for rows of one's own; `suite`: its metrics, under the names of its field;
    `convention`: how everything in the file is counted (docs/evaluation.md); `warnings`: what a reader has to know first.
    """

    model: str
    label: str
    sets: tuple[EvaluatedSet, ...]
    separation: tuple[MetricResult, ...]
    threshold: float | None
    max_false_refusal: float | None
    score_name: str | None
    settings: Mapping[str, object]
    version: int = 1
    benchmark: str = ""
    convention: str = "d2unlearn"
    suite: tuple[MetricResult, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class RelearningResult:
    """What relearning brought back (`d2unlearn.attacks.relearning`). choice: which rows were relearned; `relearned`: how many.

    probability: answer probability on the rows that were not, by steps taken ("0": before the first), at the learning rate that
    was worst. `learning_rates`: those that were tried; `worst`: which one that was, by steps. Both are empty in older results:
    `choice` is `first` (the first rows of the file) or `spread` there, and there was one rate.
    """

    choice: str
    relearned: int
    probability: Mapping[str, MetricResult]
    learning_rates: tuple[float, ...] = ()
    worst: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ClaimResult:
    """What an audit says of one claim (`d2unlearn.audit.verdict`). claim: in words; attack: the one that decides, or empty.

    `setting` and `numbers` say in which setting of it and by how much; `why` is the whole in one sentence.
    """

    name: str
    claim: str
    verdict: Verdict
    attack: str
    setting: str
    numbers: str
    why: str


@dataclass(frozen=True)
class GateSummary:
    """What a reader has to know of a calibrated gate. Scores are one per request; above `threshold` it is refused.

    `guarantee` is one sentence; `confidence` is None for a marginal guarantee. `retain_scores` are those of the
    `n_calibration` prompts the threshold was set by, `forget_scores` those of the forget prompts it was shown, if any.
    `miss_rate` is the share of forget prompts that pass, `false_refusal` that of retained prompts that do not.
    """

    score_name: str
    threshold: float
    max_false_refusal: float
    confidence: float | None
    guarantee: str
    n_calibration: int
    retain_scores: tuple[float, ...]
    forget_scores: tuple[float, ...]
    miss_rate: Interval | None
    false_refusal: Interval | None
