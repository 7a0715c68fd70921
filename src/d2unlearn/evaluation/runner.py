"""`evaluate`: every metric of a model, raw and guarded, on named sets of rows.

One teacher-forced pass a row serves all likelihood metrics and energies. Answers are generated once through the guard; only
what it refused is generated again, raw.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from d2unlearn.artifact import is_done, new_result
from d2unlearn.config import EvaluateSettings, identity
from d2unlearn.data.batching import truncate
from d2unlearn.data.records import content_hash, read_examples
from d2unlearn.data.template import Template
from d2unlearn.errors import ConfigError
from d2unlearn.generation.guarded import Answer, GuardedModel, Prompt
from d2unlearn.metrics.memorization import answer_probability, exact_memorization, extraction_strength
from d2unlearn.metrics.separation import separations
from d2unlearn.metrics.summary import GENERATED, GUARDED, LIKELIHOOD, groups_of, set_metric
from d2unlearn.metrics.text import leaks, rouge_l_recall, token_entropy
from d2unlearn.models import context_length, weights_name
from d2unlearn.runtime import check_writable, fingerprint, torch_dtype
from d2unlearn.schema import EVALUATION_FILE, EvaluatedSet, Evaluation, Example, Kind, ScoredExample
from d2unlearn.serialization import write_evaluation
from d2unlearn.teacher_forcing import TeacherForced, score_rows
from d2unlearn.version import __version__


class Decides(Protocol):
    """What an evaluation reports of a gate or another guard: a request whose score exceeds the threshold is refused."""

    @property
    def score_name(self) -> str: ...
    @property
    def threshold(self) -> float: ...
    @property
    def max_false_refusal(self) -> float | None: ...


class Answers(Protocol):
    """What is evaluated: a `GuardedModel`, or untouched weights behind another guard (`d2unlearn.guards`)."""

    @property
    def model(self) -> PreTrainedModel: ...
    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...
    @property
    def gate(self) -> Decides | None: ...
    def answer(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int | None = None, batch_size: int = 16, raw: bool = False
    ) -> list[Answer]: ...


@dataclass(frozen=True)
class NamedSet:
    """Rows to evaluate on, and whether the model should have forgotten or kept them."""

    name: str
    kind: Kind
    examples: Sequence[Example]


def run_evaluate(settings: EvaluateSettings) -> Path:
    """Evaluate and write `OUTPUT/evaluation.json` with a manifest; at once when it is there already."""
    output = Path(settings.output)
    check_writable(output)
    sets = read_sets(settings)
    guarded = GuardedModel.from_pretrained(settings.model, dtype=torch_dtype(settings.dtype), raw=True, use_gate=True)
    key = _key(settings, guarded, sets)
    if not is_done(output, key, settings):
        result = evaluate(guarded, sets, settings)
        with new_result(output, "evaluate", key, settings) as staged:
            write_evaluation(staged / EVALUATION_FILE, result)
    return output / EVALUATION_FILE


def read_sets(settings: EvaluateSettings) -> list[NamedSet]:
    """The forget and retained rows and every further set named in the settings, at most `limit` rows of each.

    Raises `ConfigError` for two sets of one name.
    """
    names = ["forget", "retain", *settings.also_forget, *settings.also_retain]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError([f"two sets are called {name}: choose another name for the further one" for name in twice])
    named: list[tuple[str, Kind, str]] = [("forget", "forget", settings.forget), ("retain", "retain", settings.retain)]
    named += [(name, "forget", source) for name, source in settings.also_forget.items()]
    named += [(name, "retain", source) for name, source in settings.also_retain.items()]
    return [
        NamedSet(name, kind, read_examples(source, group_size=settings.group_size)[: settings.limit])
        for name, kind, source in named
    ]


def evaluate(guarded: Answers, sets: Sequence[NamedSet], settings: EvaluateSettings) -> Evaluation:
    """Score every set and how well energies separate the forget sets from the retained ones."""
    scored = tuple(_evaluated(guarded, each, settings) for each in sets)
    gate = guarded.gate
    return Evaluation(
        model=settings.model,
        label=settings.label or Path(settings.model).name,
        sets=scored,
        separation=tuple(separations(scored, settings.seed, {each.name: groups_of(each.examples) for each in sets})),
        threshold=None if gate is None else gate.threshold,
        max_false_refusal=None if gate is None else gate.max_false_refusal,
        score_name=None if gate is None else gate.score_name,
        settings={**asdict(settings), "guarded": gate is not None},
    )


def _evaluated(guarded: Answers, each: NamedSet, settings: EvaluateSettings) -> EvaluatedSet:
    template = Template(guarded.tokenizer)
    limit = context_length(guarded.model)
    rows = [truncate(template.tokens(example), limit or sys.maxsize) for example in each.examples]
    held = score_rows(guarded.model, rows, batch_size=settings.batch_size, name=each.name)
    answers = _answers(guarded, each.examples, settings)
    examples = tuple(
        _scored(example, likelihood, raw, guard)
        for example, likelihood, (raw, guard) in zip(each.examples, held, answers, strict=True)
    )
    groups = groups_of(each.examples)
    names = (*LIKELIHOOD, *GENERATED, *(GUARDED if guarded.gate is not None else ()))
    return EvaluatedSet(
        each.name,
        each.kind,
        tuple(set_metric(name, each.kind, [e.scores[name] for e in examples], groups, settings.seed) for name in names),
        examples,
    )


def _answers(
    guarded: Answers, examples: Sequence[Example], settings: EvaluateSettings
) -> list[tuple[Answer | None, Answer | None]]:
    """(raw, guarded) greedy answers; both None for a row without a prompt, guarded None without a gate."""
    asked = [index for index, example in enumerate(examples) if example.prompt]
    prompts = [examples[index].prompt for index in asked]

    def answer(which: Sequence[int], *, raw: bool) -> dict[int, Answer]:
        chosen = [prompts[i] for i in which]
        return dict(
            zip(
                which,
                guarded.answer(chosen, max_new_tokens=settings.max_new_tokens, batch_size=settings.batch_size, raw=raw),
                strict=True,
            )
        )

    everything = range(len(prompts))
    if guarded.gate is None:
        raw, guard = answer(everything, raw=True), dict[int, Answer]()
    else:
        guard = answer(everything, raw=False)
        raw = {**guard, **answer([i for i, each in guard.items() if each.refused], raw=True)}
    answers: list[tuple[Answer | None, Answer | None]] = [(None, None)] * len(examples)
    for place, index in enumerate(asked):
        answers[index] = (raw[place], guard.get(place))
    return answers


def _scored(example: Example, held: TeacherForced, raw: Answer | None, guard: Answer | None) -> ScoredExample:
    rouge = math.nan if raw is None else rouge_l_recall(example.answer, raw.text)
    scores = {
        "extraction_strength": extraction_strength(held.correct),
        "exact_memorization": exact_memorization(held.correct),
        "answer_probability": answer_probability(held.nll),
        "rouge_l_recall": rouge,
        "leak_rate": leaks(rouge),
        "token_entropy": math.nan if raw is None else token_entropy(raw.text),
    }
    guarded_rouge = math.nan
    if guard is not None:
        guarded_rouge = rouge_l_recall(example.answer, guard.text)
    scores |= {
        "guarded_rouge_l_recall": guarded_rouge,
        "guarded_leak_rate": leaks(guarded_rouge),
        "guarded_refusal_rate": math.nan if guard is None else float(guard.refused),
    }
    return ScoredExample(
        example_id=example.example_id,
        question=example.question,
        answer=example.answer,
        raw_answer="" if raw is None else raw.text,
        guarded_answer=None if guard is None else guard.text,
        refused=None if guard is None else guard.refused,
        gate_score=None if guard is None else guard.score,
        prompt_energy=held.prompt_energy,
        answer_energy=held.answer_energy,
        scores=scores,
    )


def _key(settings: EvaluateSettings, guarded: GuardedModel, sets: Sequence[NamedSet]) -> str:
    """What the result depends on: weights, gate, rows, settings without places, version."""
    rows = [[each.name, each.kind, [content_hash(e) for e in each.examples]] for each in sets]
    weights = weights_name(settings.model)
    return fingerprint(
        [__version__, weights, None if guarded.gate is None else guarded.gate.fingerprint, rows, identity(settings)]
    )
