"""The calibrated gate: which requests are refused, with what words, under which guarantee, for which weights.

`d2_gate.json` in the model's folder is the one source of truth (see `gate_file`). It names what it was calibrated on (hashes of
the weights that the loader opens, of configurations, tokenizer and template) and holds a few probe prompts with their energies.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from d2unlearn.data.template import Template
from d2unlearn.errors import ArtifactError, GateError
from d2unlearn.gate.calibrate import Calibration
from d2unlearn.gate.described import described_calibration
from d2unlearn.gate.export import carry, pin_templates
from d2unlearn.gate.gate_file import checked_texts, gate_arguments, gate_content
from d2unlearn.gate.gated import GateWarning
from d2unlearn.gate.groups import group_of
from d2unlearn.gate.measuring import CalibrationRows, GateReading, checked_rows, measure_rows
from d2unlearn.gate.probe_texts import probe_prompts
from d2unlearn.gate.probes import Probe, dtype_name, make_probes
from d2unlearn.gate.rule import GateRule
from d2unlearn.gate.score import CANDIDATES, DEFAULT, Score
from d2unlearn.loaded_files import BOUND, bound_hashes, check_self_contained
from d2unlearn.models import context_length, weights_hash
from d2unlearn.refusals import GATE_REFUSALS, refusal_index
from d2unlearn.runtime import fingerprint, read_json, say, write_json
from d2unlearn.schema import GATE_FILE, Example, GateSummary, Message
from d2unlearn.signing import remove_stale_signature
from d2unlearn.wordings.wording import Wording

UNDER_SYSTEM = " under the deployment's system message"
VOUCHED = "; that none of these prompts was trained on is the user's word (--unseen): nothing shows it"


@dataclass(frozen=True)
class EnergyGate:
    """A calibrated refusal. A request whose score exceeds `threshold` is refused.

    `calibration` holds the score, the threshold and what was measured. The guarantee holds for greedy answers of up to
    `max_new_tokens` tokens with the template (`template`: its fingerprint) and the dtype recorded here. `vocab_rows`: logits
    from that index on are left out of the energy (None: all count). `weights_hash` None: not yet bound to a folder.
    `hash_of_calibrated`: the hash was taken from the files that were calibrated, not from a folder saved to later.
    `bound`: of the same files' `bound_hashes`; empty for a gate of an earlier version, or not yet bound.
    `system`: the deployment's system message, which it was calibrated under; None for none.
    `vouched`: nothing shows that the calibration prompts are unseen but the user's word, and the guarantee says so. `date`: the
    one that the chat template writes into every prompt, as 2026-11-30; None for a template that writes none.
    `sentences`: it looks at each sentence of a turn by itself; not so a gate that was calibrated without.
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
    vouched: bool = False
    bound: Mapping[str, str] = field(default_factory=dict)
    system: str | None = None
    date: str | None = None
    sentences: bool = False

    @property
    def score(self) -> Score:
        """The statistic of a request that is compared with the threshold."""
        return self.calibration.score

    @property
    def threshold(self) -> float:
        """Refused is what scores above it."""
        return self.calibration.threshold

    def lead_of(self, messages: Sequence[Message]) -> float:
        """What is added to a request's score before it is compared with the threshold: the lead of its group.

        messages: all of them, with the deployment's system message; the last may be the beginning of an answer.
        """
        group = group_of(messages, self.system)
        return next((each.lead for each in self.calibration.groups if each.group == group), 0.0)

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
            f"same prompt template in {self.dtype}{UNDER_SYSTEM if self.system is not None else ''}"
            f"{VOUCHED if self.vouched else ''}"
        )

    def refusal(self, prompt_ids: Sequence[int]) -> str:
        """The words a request is refused with: one of `refusal_texts`, always the same one for the same prompt."""
        return self.refusal_texts[refusal_index(self.seed, prompt_ids, len(self.refusal_texts))]

    @property
    def rule(self) -> GateRule:
        """What it takes to decide: the part that travels."""
        return GateRule(**{field.name: getattr(self, field.name) for field in fields(GateRule)})

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
        vouched: bool = False,
        system: str | None = None,
        near: Sequence[Example] = (),
        unrelated: Sequence[Example] = (),
        wordings: Sequence[Wording] = (),
        of_each: int = 1,
    ) -> EnergyGate:
        """Generate answers to held-out retained prompts (and forget prompts, if any), and set the threshold by them.

        `retain`: rows that the model was not trained on since unlearning began; a seeded 35% of them choose and standardise the
        score, the rest set the threshold. Answers in the rows only tell which wordings the model does not answer. The model is
        put in evaluation mode. `folder`: where the model's weight files lie, to bind the gate to them. `score`: a name of
        `CANDIDATES`, or `auto`: chosen by what forget prompts show. `vouched`: only the user's word says the rows are unseen.
        `near`, `unrelated`: legitimate rows from beside what is forgotten, and from far off. `wordings`: in `of_each` of
        them for each group of requests every row is asked too. `system`: the deployment's system message, under which rows
        without one are asked. Raises `GateError` for rows without a prompt, for too few rows
        (before anything is generated), for near rows that are forget rows, and for a model whose energies are not finite.
        """
        candidates, default = _candidates(score)
        texts = checked_texts(GATE_REFUSALS if refusal_texts is None else refusal_texts)
        rows = checked_rows(CalibrationRows(retain, forget or (), near, unrelated))
        model.eval()  # type: ignore[no-untyped-call]
        template = Template(tokenizer)
        measured = measure_rows(
            GateReading(model, tokenizer, max_new_tokens, batch_size, temperature, vocab_rows, system),
            rows,
            wordings,
            candidates,
            default,
            max_false_refusal=max_false_refusal,
            confidence=confidence,
            of_each=of_each,
            seed=seed,
        )
        context = context_length(model)
        prompts = probe_prompts(template, None if context is None else context - 1, seed)
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
            vouched=vouched,
            bound={} if folder is None else bound_hashes(Path(folder)),
            system=system,
            date=template.date,
            sentences=True,
        )

    @property
    def score_name(self) -> str:
        """Name of the score in `CANDIDATES`."""
        return self.calibration.name

    @property
    def fingerprint(self) -> str:
        """Changes with anything in the gate."""
        return fingerprint(gate_content(vars(self), self.summary()))

    def describe(self) -> Iterator[str]:
        """Lines for a person: what was chosen and why, the threshold, what it promises, what it misses."""
        yield from described_calibration(self.calibration, self.max_false_refusal, self.guarantee)

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

        A gate that was calibrated without `folder` is bound to what is found there. A chat template that writes the date is
        changed to write the gate's `date`. Raises `GateError` when the folder holds
        other weights or another configuration than those calibrated, or a tokenizer that renders prompts otherwise.
        """
        check_self_contained(Path(folder))
        weights = weights_hash(folder)
        if self.weights_hash is not None and weights != self.weights_hash:
            raise GateError(f"{folder} holds other weights than those the gate was calibrated on; calibrate on that folder")
        if self.date is not None and pin_templates(Path(folder), self.date):
            say(f"the chat template of {folder} writes the date: it is fixed there to {self.date}, which was calibrated")
        bound = bound_hashes(Path(folder))
        if self.bound and bound["config"] != self.bound["config"]:
            raise GateError(f"{folder} holds another configuration than the one that was calibrated; calibrate on that folder")
        if self.weights_hash is not None and not self.bound:
            bound = {}  # of an earlier version: nobody knows what was there when it was calibrated
        if remove_stale_signature(Path(folder)):
            say(f"the signature of {folder} no longer fits and was removed: sign again (`d2unlearn calibrate --sign-key`)")
        path = Path(folder) / GATE_FILE
        write_json(path, gate_content({**vars(self), "weights_hash": weights, "bound": bound}, self.summary()))
        carry(Path(folder), self.rule, self.refusal_texts, self.template, weights, self.guarantee)
        return path

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> EnergyGate:
        """The gate of a model folder, held against the files that its loader opens.

        Raises `GateError` when there is none, or it is damaged, or of other weights or files than are there; `ModelError` where
        loading would read what lies elsewhere (see `check_self_contained`). Warns of what a gate of an earlier version does not
        bind.
        """
        path = Path(folder) / GATE_FILE
        if not path.is_file():
            if not Path(folder).is_dir():
                raise GateError(f"{folder} is not a folder; --model takes an artifact with a gate")
            raise GateError(
                f"{folder} has no gate ({GATE_FILE}): make one with `d2unlearn calibrate --model {folder}`, or ask for answers "
                "that nothing guards with --raw"
            )
        check_self_contained(Path(folder))
        try:
            gate = cls(**gate_arguments(read_json(path), [field.name for field in fields(cls)]))
        except (ArtifactError, GateError) as error:
            raise GateError(f"{path} cannot be used: {error}; run `d2unlearn calibrate` again") from error
        if gate.weights_hash != weights_hash(folder):
            raise GateError(
                f"{path} was calibrated on other weights than {folder} holds, so its threshold means nothing here; "
                f"run `d2unlearn calibrate --model {folder}` again"
            )
        gate._check_bound(Path(folder))
        return gate

    def _check_bound(self, folder: Path) -> None:
        if not self.bound:
            warnings.warn(
                f"{folder / GATE_FILE} is of an earlier version and does not bind {', '.join(BOUND.values())}: changes there "
                f"go unseen; `d2unlearn calibrate --model {folder}` binds them",
                GateWarning,
                stacklevel=3,
            )
            return
        there = bound_hashes(folder)
        changed = [words for name, words in BOUND.items() if there[name] != self.bound.get(name)]
        if changed:
            raise GateError(
                f"{' and '.join(changed)} in {folder} changed since the gate was calibrated, so its threshold means nothing "
                f"here; restore what was there, or run `d2unlearn calibrate --model {folder}` again"
            )

    def check_probes(self, model: PreTrainedModel) -> None:
        """Raises `GateError` unless the model gives the stored probe prompts the energies they had, within the tolerance."""
        self.rule.check_probes(model)


def _candidates(score: str) -> tuple[Mapping[str, Score], str]:
    if score == "auto":
        return CANDIDATES, DEFAULT
    if score not in CANDIDATES:
        raise GateError(f"score {score!r} is not known; choose auto or one of {', '.join(CANDIDATES)}")
    return {score: CANDIDATES[score]}, score
