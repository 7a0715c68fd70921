"""`analyze`: energy on trial against every other index, on one model and beside it the original and one that never knew.

Each model answers every request once, and all indices are read meanwhile. Retained calibration requests, which are no test
requests, are split in two: one half fits what needs fitting, the other sets the thresholds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from d2unlearn.analysis.costs import costs, generation_seconds, prompt_logits
from d2unlearn.analysis.detectors import INDICES, QUANTITIES, REFERENCE, Index
from d2unlearn.analysis.model import Answered, Decode, asked, calibration_curves, disturbed, model_trial
from d2unlearn.analysis.perturbations import DISTURBANCES, Subject
from d2unlearn.analysis.questions import N_BOOT, Questions, read_questions
from d2unlearn.analysis.recorder import Answering, Layers, Reads, layers_of, read_answers
from d2unlearn.analysis.records import (
    Analysis,
    Cost,
    Disturbed,
    ModelRole,
    ModelTrial,
    TriedIndex,
    write_analysis,
)
from d2unlearn.analysis.statistics import PLACEMENTS, RATES, draw
from d2unlearn.artifact import is_done, new_result
from d2unlearn.config import AnalyzeSettings, identity
from d2unlearn.data.records import content_hash
from d2unlearn.data.template import Template
from d2unlearn.errors import ModelError
from d2unlearn.gate.gate import EnergyGate
from d2unlearn.metrics.summary import groups_of
from d2unlearn.models import end_token_ids, load_model, load_tokenizer, pad_token_id, weights_name
from d2unlearn.runtime import check_writable, fingerprint, hash_file, pick_device, say, torch_dtype
from d2unlearn.schema import ANALYSIS_FILE, GATE_FILE, Example, Kind
from d2unlearn.version import __version__

KINDS: tuple[Kind, ...] = ("retain", "forget")


@dataclass(frozen=True)
class Witness:
    """A model that answers, and how."""

    place: str
    subject: Subject
    how: Answering

    def reads(self, examples: Sequence[Example], name: str = "") -> Reads:
        return read_answers(self.subject.model, prompts_of(self.subject, examples), QUANTITIES, self.how, name=name)


def run_analyze(settings: AnalyzeSettings) -> Path:
    """Analyse and write `OUTPUT/analysis.json` with a manifest; at once when it is there already."""
    output = Path(settings.output)
    check_writable(output)
    questions = read_questions(settings)
    key = _key(settings, questions)
    if not is_done(output, key, settings):
        analysis = analyze(questions, settings)
        with new_result(output, "analyze", key, settings) as staged:
            write_analysis(staged / ANALYSIS_FILE, analysis)
    return output / ANALYSIS_FILE


def analyze(questions: Questions, settings: AnalyzeSettings) -> Analysis:
    """Put every index on trial on every model that the settings name."""
    gate = EnergyGate.from_pretrained(settings.model) if (Path(settings.model) / GATE_FILE).is_file() else None
    reference = REFERENCE if gate is None else f"energy/{gate.score_name}"
    witnesses = {role: _witness(place, settings, gate) for role, place in _places(settings).items()}
    answered = {role: _answered(role, witness, questions) for role, witness in witnesses.items()}
    say("statistics")
    fitted = {role: each.fitted() for role, each in answered.items()}
    draws = questions.draws(settings.seed)
    trials = {
        role: model_trial(role, witnesses[role].place, each, fitted[role], questions, draws, reference)
        for role, each in answered.items()
    }
    cost, seconds, length = _costs(witnesses["model"], questions, answered["model"], fitted["model"], settings.batch_size)
    decode = {role: witness.subject.tokenizer for role, witness in witnesses.items()}
    return Analysis(
        model=settings.model,
        label=settings.label or Path(settings.model).name,
        reference=reference,
        gate_score=None if gate is None else gate.score_name,
        sets=questions.tried(),
        indices=tuple(TriedIndex(name, i.label, i.reads, i.forgotten, i.fitted) for name, i in INDICES.items()),
        models=tuple(trials.values()),
        asked=tuple(asked(questions, answered, fitted["model"][reference], {r: _pieces(t) for r, t in decode.items()})),
        costs=cost,
        generation_ms=1e3 * seconds,
        answer_tokens=length,
        curves=tuple(calibration_curves(answered["model"], questions, settings.seed)),
        disturbances={name: each.label for name, each in DISTURBANCES.items()},
        disturbed=tuple(_under_disturbances(witnesses["model"], questions, fitted["model"], trials["model"], settings)),
        n_fit=len(questions.fit),
        n_calibration=len(questions.threshold),
        settings=asdict(settings),
    )


def prompts_of(subject: Subject, examples: Sequence[Example]) -> list[list[int]]:
    """Each example's prompt as the subject's tokenizer renders it."""
    template = Template(subject.tokenizer)
    return [template.prompt_ids(example.prompt) for example in examples]


def _places(settings: AnalyzeSettings) -> dict[ModelRole, str]:
    """Where each model lies, in the order of the report."""
    given: dict[ModelRole, str | None] = {
        "original": settings.original,
        "model": settings.model,
        "oracle": settings.oracle,
    }
    return {role: place for role, place in given.items() if place is not None}


def _witness(place: str, settings: AnalyzeSettings, gate: EnergyGate | None) -> Witness:
    model = load_model(place, dtype=torch_dtype(settings.dtype))
    model.to(pick_device())  # type: ignore[arg-type]
    tokenizer = load_tokenizer(place)
    how = Answering(
        settings.max_new_tokens,
        settings.batch_size,
        pad_token_id(tokenizer),
        tuple(end_token_ids(model, tokenizer)),
        vocab_rows=None if gate is None else gate.vocab_rows,
        layers=_readable_layers(model),
        seed=settings.seed,
    )
    return Witness(place, Subject(model, tokenizer), how)


def _readable_layers(model: PreTrainedModel) -> Layers | None:
    """The model's layers; None, with a line for a person, where they cannot be read one by one."""
    try:
        return layers_of(model)
    except ModelError as error:
        say(f"no energies by layer: {error}")
        return None


def _answered(role: ModelRole, witness: Witness, questions: Questions) -> Answered:
    sets = {each.name: witness.reads(each.examples, f"{role}, {each.name}") for each in questions.sets}
    fit, threshold = (witness.reads(rows, f"{role}, calibration") for rows in (questions.fit, questions.threshold))
    return Answered(sets, fit, threshold)


def _costs(
    witness: Witness, questions: Questions, answered: Answered, fitted: Mapping[str, Index], batch_size: int
) -> tuple[tuple[Cost, ...], float, float]:
    """Every index's cost, the seconds that a plain answer takes, and its mean length; on one batch of forgotten requests."""
    forget = questions.main("forget")
    prompts = prompts_of(witness.subject, forget.examples[:batch_size])
    seconds = generation_seconds(witness.subject.model, prompts, witness.how)
    reads = answered.sets[forget.name].take(range(len(prompts)))
    logits = prompt_logits(witness.subject.model, prompts, witness.how.vocab_rows)
    length = float(np.mean([len(tokens) for tokens in reads.token_ids]))
    return tuple(costs(fitted, reads, logits, seconds)), seconds, length


def _under_disturbances(
    witness: Witness, questions: Questions, fitted: Mapping[str, Index], trial: ModelTrial, settings: AnalyzeSettings
) -> list[Disturbed]:
    """The same requests under every disturbance, judged by the thresholds that were set without one."""
    rows = {kind: _some(questions.main(kind).examples, settings) for kind in KINDS}
    draws = {kind: draw(groups_of(examples) or range(len(examples)), N_BOOT, settings.seed) for kind, examples in rows.items()}
    thresholds = {
        each.index: each.threshold for each in trial.refusals if (each.rate, each.placement) == (RATES[0], PLACEMENTS[0])
    }
    found: list[Disturbed] = []
    for name, disturbance in DISTURBANCES.items():
        with disturbance.applied(witness.subject) as subject:
            how = replace(witness.how, layers=None, sampled=subject.sampled)
            under = Witness(witness.place, subject, how)
            reads: dict[Kind, Reads] = {kind: under.reads(examples, f"{name}, {kind}") for kind, examples in rows.items()}
        found += disturbed(name, reads, fitted, thresholds, draws)
    return found


def _some(examples: Sequence[Example], settings: AnalyzeSettings) -> list[Example]:
    """At most `disturbed` of the rows, drawn by the seed, in their order."""
    order = np.random.default_rng(settings.seed).permutation(len(examples))
    return [examples[index] for index in sorted(order[: settings.disturbed])]


def _pieces(tokenizer: PreTrainedTokenizerBase) -> Decode:
    return lambda ids: [str(tokenizer.decode([token])) for token in ids]


def _key(settings: AnalyzeSettings, questions: Questions) -> str:
    """What the result depends on: weights, the gate, rows, settings without places, version."""
    rows = [[each.name, each.kind, [content_hash(e) for e in each.examples]] for each in questions.sets]
    rows += [["calibration", "retain", [content_hash(e) for e in (*questions.fit, *questions.threshold)]]]
    weights = {role: weights_name(place) for role, place in _places(settings).items()}
    gate = Path(settings.model) / GATE_FILE
    return fingerprint([__version__, weights, hash_file(gate) if gate.is_file() else None, rows, identity(settings)])
