"""The calibrated gate: which requests are refused, with what words, under which guarantee, for which weights.

`d2_gate.json` in the model's folder is the one source of truth. It names the weights it was calibrated on (a hash over their
bytes) and holds a few probe prompts with their energies, for weights that do not come as those files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from d2unlearn.data.holdout import split_validation
from d2unlearn.data.template import Template
from d2unlearn.errors import ArtifactError, GateError
from d2unlearn.gate.calibrate import Calibration, Candidate, calibrate
from d2unlearn.gate.export import carry
from d2unlearn.gate.probes import Probe, dtype_name, make_probes
from d2unlearn.gate.rule import STATISTIC, Rule, check_statistic
from d2unlearn.gate.score import CANDIDATES, DEFAULT, Score, score_from_json, score_to_json
from d2unlearn.gate.traces import Trace, collect_traces
from d2unlearn.models import weights_hash
from d2unlearn.refusals import GATE_REFUSALS, refusal_index
from d2unlearn.runtime import fingerprint, read_json, write_json
from d2unlearn.schema import GATE_FILE, Example, GateSummary, Interval
from d2unlearn.stats import conformal_rank

FORMAT = 1
N_PROBES = 8


@dataclass(frozen=True)
class EnergyGate:
    """A calibrated refusal. A request whose score exceeds `threshold` is refused.

    `calibration` holds the score, the threshold and what was measured. The guarantee holds for greedy answers of up to
    `max_new_tokens` tokens with the template (`template`: its fingerprint) and the dtype recorded here. `vocab_rows`: logits
    from that index on are left out of the energy (None: all count). `weights_hash` None: not yet bound to a folder.
    `hash_of_calibrated`: the hash was taken from the files that were calibrated, not from a folder saved to later.
    """

    calibration: Calibration
    max_false_refusal: float
    confidence: float | None
    max_new_tokens: int
    template: str
    dtype: str
    probes: tuple[Probe, ...]
    probe_tolerance: float
    temperature: float = 1.0
    vocab_rows: int | None = None
    refusal_texts: tuple[str, ...] = GATE_REFUSALS
    seed: int = 0
    weights_hash: str | None = None
    hash_of_calibrated: bool = False

    @property
    def score(self) -> Score:
        """The statistic of a request that is compared with the threshold."""
        return self.calibration.score

    @property
    def threshold(self) -> float:
        """Refused is what scores above it."""
        return self.calibration.threshold

    @property
    def n_calibration(self) -> int:
        """Retained prompts behind the threshold."""
        return len(self.calibration.calibration_scores)

    @property
    def guarantee(self) -> str:
        """What is promised, in one sentence."""
        means = (
            "on average over such calibrations"
            if self.confidence is None
            else f"with {100 * self.confidence:g}% confidence over the choice of calibration prompts"
        )
        return (
            f"at most {100 * self.max_false_refusal:g}% of requests of the same kind as the {self.n_calibration} retained "
            f"calibration prompts are refused, {means}, for greedy answers of up to {self.max_new_tokens} tokens with the "
            f"same prompt template in {self.dtype}"
        )

    def refusal(self, prompt_ids: Sequence[int]) -> str:
        """The words a request is refused with: one of `refusal_texts`, always the same one for the same prompt."""
        return self.refusal_texts[refusal_index(self.seed, prompt_ids, len(self.refusal_texts))]

    @property
    def rule(self) -> Rule:
        """What it takes to decide: the part that travels."""
        return Rule(**{field.name: getattr(self, field.name) for field in fields(Rule)})

    @classmethod
    def calibrate(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        retain: Sequence[Example],
        forget: Sequence[Example] | None = None,
        *,
        max_false_refusal: float = 0.01,
        confidence: float | None = None,
        max_new_tokens: int = 64,
        batch_size: int = 32,
        seed: int = 0,
        temperature: float = 1.0,
        vocab_rows: int | None = None,
        refusal_texts: Sequence[str] | None = None,
        folder: str | Path | None = None,
        score: str = "auto",
    ) -> EnergyGate:
        """Generate answers to held-out retained prompts (and forget prompts, if any), and set the threshold by them.

        `retain`: rows that the model was not trained on since unlearning began; a seeded 35% of them choose and standardise the
        score, the rest set the threshold. Answers in the rows are not used. The model is put in evaluation mode. `folder`:
        where the model's weight files lie, to bind the gate to them. `score`: a name of `CANDIDATES`, or `auto`: chosen by what
        forget prompts show. Raises `GateError` for rows without a prompt, for too few rows (before anything is generated), and
        for a model whose energies are not finite.
        """
        candidates, default = _candidates(score)
        texts = _checked_texts(GATE_REFUSALS if refusal_texts is None else refusal_texts)
        validation_rows, calibration_rows = split_validation(_with_prompts(retain, "retain"), seed=seed)
        forget_rows = _with_prompts(forget or (), "forget")
        conformal_rank(len(calibration_rows), max_false_refusal, confidence)
        model.eval()  # type: ignore[no-untyped-call]
        template = Template(tokenizer)

        def traces(rows: Sequence[Example], kind: str) -> list[Trace]:
            prompts = [template.prompt_ids(row.prompt) for row in rows]
            return collect_traces(
                model,
                tokenizer,
                prompts,
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                temperature=temperature,
                vocab_rows=vocab_rows,
                description=f"answers to {kind} prompts",
            )

        measured = calibrate(
            _energies(traces(validation_rows, "validation")),
            _energies(traces(calibration_rows, "calibration")),
            _energies(traces(forget_rows, "forget")),
            [row.group for row in forget_rows],
            max_false_refusal=max_false_refusal,
            confidence=confidence,
            candidates=candidates,
            default=default,
            seed=seed,
        )
        prompts = [template.prompt_ids(row.prompt) for row in calibration_rows[:N_PROBES]]
        probes, tolerance = make_probes(model, prompts, temperature, vocab_rows)
        return cls(
            calibration=measured,
            max_false_refusal=max_false_refusal,
            confidence=confidence,
            max_new_tokens=max_new_tokens,
            template=template.fingerprint,
            dtype=dtype_name(model),
            probes=probes,
            probe_tolerance=tolerance,
            temperature=temperature,
            vocab_rows=vocab_rows,
            refusal_texts=texts,
            seed=seed,
            weights_hash=None if folder is None else weights_hash(folder),
            hash_of_calibrated=folder is not None,
        )

    @property
    def score_name(self) -> str:
        """Name of the score in `CANDIDATES`."""
        return self.calibration.name

    @property
    def fingerprint(self) -> str:
        """Changes with anything in the gate."""
        return fingerprint(gate_to_json(self))

    def describe(self) -> Iterator[str]:
        """Lines for a person: what was chosen and why, the threshold, what it promises, what it misses."""
        measured = self.calibration
        for each in measured.candidates:
            mark = "*" if each.name == measured.name else " "
            yield (
                f"{mark} {each.name:<16} AUROC {each.auroc:.4f}   false refusals at 95% caught {each.fpr_at_95_tpr:.2%}   "
                f"missed at {self.max_false_refusal:.1%} {each.missed:.2%}"
            )
        how = "raised by forget prompts from" if self.threshold > measured.conformal_threshold else "the conformal value:"
        yield (
            f"score {measured.name}, threshold {self.threshold:.4f} ({how} {measured.conformal_threshold:.4f}, rank "
            f"{measured.rank} of {self.n_calibration})"
        )
        yield f"guarantee: {self.guarantee}"
        yield f"retained prompts refused: {_percent(measured.validation_false_refusal)} of those that chose the score"
        if measured.miss_rate is not None:
            folds = "cross-fitted over groups" if measured.grouped else "cross-fitted; rows taken as independent, no groups"
            yield f"forget prompts missed: {_percent(measured.miss_rate)}, {folds}"

    def summary(self) -> GateSummary:
        """What a report shows of the gate."""
        measured = self.calibration
        return GateSummary(
            score_name=measured.name,
            threshold=self.threshold,
            max_false_refusal=self.max_false_refusal,
            confidence=self.confidence,
            guarantee=self.guarantee,
            n_calibration=self.n_calibration,
            retain_scores=measured.calibration_scores,
            forget_scores=measured.forget_scores,
            miss_rate=measured.miss_rate,
            false_refusal=measured.validation_false_refusal,
        )

    def save(self, folder: str | Path) -> Path:
        """Write `d2_gate.json` beside the weights of `folder`, and what carries the gate without this package; return its path.

        A gate that was calibrated without `folder` is bound to the weights found there. Raises `GateError` when the folder
        holds other weights than those calibrated, or a tokenizer that renders prompts otherwise.
        """
        found = weights_hash(folder)
        if self.weights_hash is not None and found != self.weights_hash:
            raise GateError(f"{folder} holds other weights than those the gate was calibrated on; calibrate on that folder")
        path = Path(folder) / GATE_FILE
        write_json(path, gate_to_json(replace(self, weights_hash=found)))
        carry(Path(folder), self.rule, self.refusal_texts, self.template, found, self.guarantee)
        return path

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> EnergyGate:
        """The gate of a model folder. Raises `GateError` when there is none, or it is damaged or of other weights."""
        path = Path(folder) / GATE_FILE
        if not path.is_file():
            if not Path(folder).is_dir():
                raise GateError(f"{folder} is not a folder; --model takes an artifact with a gate")
            raise GateError(
                f"{folder} has no gate ({GATE_FILE}): make one with `d2unlearn calibrate --model {folder}`, or ask for answers "
                "that nothing guards with --raw"
            )
        try:
            gate = gate_from_json(read_json(path))
        except (ArtifactError, GateError) as error:
            raise GateError(f"{path} cannot be used: {error}; run `d2unlearn calibrate` again") from error
        if gate.weights_hash != weights_hash(folder):
            raise GateError(
                f"{path} was calibrated on other weights than {folder} holds, so its threshold means nothing here; "
                f"run `d2unlearn calibrate --model {folder}` again"
            )
        return gate

    def check_probes(self, model: PreTrainedModel) -> None:
        """Raises `GateError` unless the model gives the stored probe prompts the energies they had, within the tolerance."""
        self.rule.check_probes(model)


def gate_to_json(gate: EnergyGate) -> dict[str, Any]:
    """The content of `d2_gate.json`: on top what `GateSummary` names, then what is needed to decide, then what was measured."""
    measured = gate.calibration
    kept = ("conformal_threshold", "rank", "candidates", "calibration_false_refusal", "grouped")
    own = {f.name: getattr(gate, f.name) for f in fields(gate) if f.name not in ("calibration", "probes")}
    content = {
        "format": FORMAT,
        "statistic": STATISTIC,
        **asdict(gate.summary()),
        "score": score_to_json(gate.score),
        **own,
        "probes": [asdict(probe) for probe in gate.probes],
        "measured": {name: value for name, value in asdict(measured).items() if name in kept},
    }
    return {**content, "checksum": fingerprint(content)}


def gate_from_json(value: dict[str, Any]) -> EnergyGate:
    """The gate that `gate_to_json` wrote. Raises `GateError` for another format or missing or wrong entries."""
    if value.get("format") != FORMAT:
        raise GateError(f"gate format {value.get('format')!r} is not known to this version, which reads {FORMAT}")
    check_statistic(value)
    try:
        own = {f.name: value[f.name] for f in fields(EnergyGate) if f.name not in ("calibration", "probes")}
        own["refusal_texts"] = _checked_texts(own["refusal_texts"])
        probes = tuple(Probe(tuple(int(i) for i in p["token_ids"]), float(p["energy"])) for p in value["probes"])
        gate = EnergyGate(calibration=_calibration_from_json(value), probes=probes, **own)
    except (KeyError, TypeError, ValueError) as error:
        raise GateError(f"an entry is missing or garbled ({error})") from None
    if not math.isfinite(gate.threshold) or gate.threshold < gate.calibration.conformal_threshold:
        raise GateError("the threshold lies below what the calibration allows; the file was edited")
    if value.get("checksum") != fingerprint({name: entry for name, entry in value.items() if name != "checksum"}):
        raise GateError("it was edited by hand, or written by an older version: its checksum does not fit")
    return gate


def _calibration_from_json(value: dict[str, Any]) -> Calibration:
    measured = value["measured"]
    return Calibration(
        name=str(value["score_name"]),
        score=score_from_json(value["score"]),
        threshold=float(value["threshold"]),
        conformal_threshold=float(measured["conformal_threshold"]),
        rank=int(measured["rank"]),
        candidates=tuple(Candidate(**each) for each in measured["candidates"]),
        validation_false_refusal=Interval(*value["false_refusal"]),
        calibration_false_refusal=Interval(*measured["calibration_false_refusal"]),
        miss_rate=None if value["miss_rate"] is None else Interval(*value["miss_rate"]),
        grouped=bool(measured["grouped"]),
        calibration_scores=tuple(float(each) for each in value["retain_scores"]),
        forget_scores=tuple(float(each) for each in value["forget_scores"]),
    )


def _with_prompts(rows: Sequence[Example], kind: str) -> list[Example]:
    bare = next((row for row in rows if not row.prompt), None)
    if bare is not None:
        raise GateError(
            f"{bare.source}: a {kind} row of plain text has no prompt, and the gate judges requests by the energy where an "
            "answer begins; give rows with a question (prompt/completion, question/answer or messages)"
        )
    return list(rows)


def _candidates(score: str) -> tuple[Mapping[str, Score], str]:
    if score == "auto":
        return CANDIDATES, DEFAULT
    if score not in CANDIDATES:
        raise GateError(f"score {score!r} is not known; choose auto or one of {', '.join(CANDIDATES)}")
    return {score: CANDIDATES[score]}, score


def _checked_texts(texts: Sequence[str]) -> tuple[str, ...]:
    if isinstance(texts, str) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise GateError("refusal texts should be at least one text that is not empty")
    return tuple(texts)


def _percent(share: Interval) -> str:
    return f"{share.value:.2%} (95% interval {share.low:.2%} to {share.high:.2%}, n = {share.n})"


def _energies(traces: Sequence[Trace]) -> list[tuple[float, ...]]:
    return [trace.energies for trace in traces]
