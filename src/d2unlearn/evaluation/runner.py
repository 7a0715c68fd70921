"""`evaluate`: every metric of a model, raw and guarded, on named sets of rows.

One teacher-forced pass a row serves all likelihood metrics and energies. Answers are generated once through the guard; only
what it refused is generated again, raw.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from d2unlearn.artifact import is_done, new_result
from d2unlearn.compatibility import check_room
from d2unlearn.config import EvaluateSettings, identity
from d2unlearn.data.batching import truncate
from d2unlearn.data.long_rows import fitted, long_rows_told
from d2unlearn.data.records import content_hash, read_examples
from d2unlearn.data.template import Template
from d2unlearn.errors import ConfigError
from d2unlearn.evaluation.records import ReportedGate, evaluation_record, guarded_scores, raw_scores, scored_example
from d2unlearn.generation.guarded import Answer, GuardedModel, Prompt
from d2unlearn.head import head_of
from d2unlearn.metrics.memorization import answer_probability, exact_memorization, extraction_strength
from d2unlearn.metrics.separation import separation_of_sets
from d2unlearn.metrics.summary import (
    GENERATED_METRICS,
    GUARDED_METRICS,
    KL_METRIC,
    LIKELIHOOD_METRICS,
    LOGIT_METRICS,
    STAYED_METRIC,
    groups_of,
    set_metric,
)
from d2unlearn.metrics.text import rouge_l_recall
from d2unlearn.models import context_length, load_model, weights_name
from d2unlearn.outputs import output_place
from d2unlearn.redaction import redacted
from d2unlearn.runtime import fingerprint, said_if_long, say, torch_dtype
from d2unlearn.schema import EVALUATION_FILE, EvaluatedSet, Evaluation, Example, Kind, ScoredExample
from d2unlearn.serialization import write_evaluation
from d2unlearn.teacher_forcing import TeacherForced, read_original, score_rows
from d2unlearn.version import __version__


class Answers(Protocol):
    """What is evaluated: a `GuardedModel`, or untouched weights behind another guard (`d2unlearn.guards`)."""

    @property
    def model(self) -> PreTrainedModel: ...
    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...
    @property
    def gate(self) -> ReportedGate | None: ...
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
    output = output_place(settings.output)
    sets = read_sets(settings)
    guarded = GuardedModel.from_pretrained(settings.model, dtype=torch_dtype(settings.dtype), raw=True, use_gate=True)
    key = _key(settings, guarded, sets)
    if not is_done(output, key, settings):
        result = evaluate(guarded, sets, settings, _original(settings, guarded.model))
        with new_result(output, "evaluate", key, settings) as staged:
            write_evaluation(staged / EVALUATION_FILE, redacted(result) if settings.redact else result)
    return output / EVALUATION_FILE


def read_sets(settings: EvaluateSettings) -> list[NamedSet]:
    """The forget and retained rows and every further set named in the settings, at most `limit` rows of each.

    Raises `ConfigError` for two sets of one name.
    """
    named: list[tuple[str, Kind, str | list[str]]] = [
        ("forget", "forget", settings.forget),
        ("retain", "retain", settings.retain),
    ]
    named += [(name, "forget", source) for name, source in settings.also_forget.items()]
    named += [(name, "retain", source) for name, source in settings.also_retain.items()]
    twice = [name for name, count in Counter(name for name, _, _ in named).items() if count > 1]
    if twice:
        raise ConfigError([f"two sets are called {name}: choose another name for the further one" for name in sorted(twice)])
    return [
        NamedSet(name, kind, read_examples(source, group_size=settings.group_size, columns=settings.columns)[: settings.limit])
        for name, kind, source in named
    ]


def evaluate(
    guarded: Answers, sets: Sequence[NamedSet], settings: EvaluateSettings, original: PreTrainedModel | None = None
) -> Evaluation:
    """Score every set and how well energies separate the forget sets from the retained ones.

    original: the model before unlearning, from which the KL at every answer is taken; there is none without.
    """
    options = {"max_new_tokens": settings.max_new_tokens, "batch_size": settings.batch_size, "seed": settings.seed}
    cut = tuple(_cut_rows(guarded, sets))
    for line in cut:
        say(line)
    scored = [_evaluated(guarded, named, original, **options) for named in sets]
    with said_if_long("statistics"):
        separation = separation_of_sets(scored, settings.seed, {named.name: groups_of(named.examples) for named in sets})
    record = evaluation_record(settings, guarded.gate, scored, separation)
    return replace(record, warnings=(*record.warnings, *cut))


def _cut_rows(guarded: Answers, sets: Sequence[NamedSet]) -> Iterator[str]:
    """A line for each set with rows beyond the model's context. Raises `DataError` for a prompt that leaves no room there."""
    template, context = Template(guarded.tokenizer), context_length(guarded.model)
    if context is None:
        return
    for named in sets:
        for example in named.examples:
            if example.prompt:
                check_room(template.prompt_ids(example.prompt), context, example.source)
        yield from long_rows_told(fitted(named.examples, template, context, named.kind, "cut")[1], named.name, "scored")


def _original(settings: EvaluateSettings, model: PreTrainedModel) -> PreTrainedModel | None:
    """The original, on the model's device. Raises `ConfigError` for one of another vocabulary."""
    if settings.original is None:
        return None
    original = load_model(settings.original, dtype=torch_dtype(settings.dtype))
    sizes = [head_of(each).weight.shape[0] for each in (original, model)]
    if sizes[0] != sizes[1]:
        raise ConfigError(
            [f"{settings.original} has {sizes[0]} tokens and {settings.model} {sizes[1]}: give the model it was made from"]
        )
    original.to(model.device)  # type: ignore[arg-type]
    return original


def _evaluated(
    guarded: Answers,
    named: NamedSet,
    original: PreTrainedModel | None,
    *,
    max_new_tokens: int,
    batch_size: int,
    seed: int,
) -> EvaluatedSet:
    template = Template(guarded.tokenizer)
    limit = context_length(guarded.model)
    rows = [truncate(template.tokens(example), limit or sys.maxsize) for example in named.examples]
    source = None if original is None else read_original(original, rows, batch_size=batch_size, name=f"original, {named.name}")
    likelihoods = score_rows(guarded.model, rows, batch_size=batch_size, name=named.name, shape=True, original=source)
    prompts = [example.prompt for example in named.examples if example.prompt]
    answers = iter(_answers(guarded, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size))
    examples = tuple(
        _scored(example, likelihood, *(next(answers) if example.prompt else (None, None)), with_kl=original is not None)
        for example, likelihood in zip(named.examples, likelihoods, strict=True)
    )
    groups = groups_of(named.examples)
    likelihood_names = (*LIKELIHOOD_METRICS, STAYED_METRIC, *(() if original is None else (KL_METRIC,)), *LOGIT_METRICS)
    names = (*likelihood_names, *GENERATED_METRICS, *(GUARDED_METRICS if guarded.gate is not None else ()))
    metrics = (set_metric(name, named.kind, [e.scores[name] for e in examples], groups, seed) for name in names)
    return EvaluatedSet(named.name, named.kind, tuple(metrics), examples)


def _answers(
    guarded: Answers, prompts: Sequence[Prompt], *, max_new_tokens: int, batch_size: int
) -> list[tuple[Answer, Answer | None]]:
    """(raw, guarded) greedy answers, the second None without a gate."""

    def generated(asked: Sequence[Prompt], *, raw: bool) -> list[Answer]:
        return guarded.answer(asked, max_new_tokens=max_new_tokens, batch_size=batch_size, raw=raw)

    if guarded.gate is None:
        return [(raw, None) for raw in generated(prompts, raw=True)]
    behind_gate = generated(prompts, raw=False)
    refused = [prompt for prompt, answer in zip(prompts, behind_gate, strict=True) if answer.refused]
    instead = iter(generated(refused, raw=True))
    return [(next(instead) if answer.refused else answer, answer) for answer in behind_gate]


def _scored(
    example: Example, likelihood: TeacherForced, raw: Answer | None, guarded: Answer | None, *, with_kl: bool
) -> ScoredExample:
    recall, guarded_recall = (
        math.nan if answer is None else rouge_l_recall(example.answer, answer.text) for answer in (raw, guarded)
    )
    scores = {
        "extraction_strength": extraction_strength(likelihood.correct),
        "exact_memorization": exact_memorization(likelihood.correct),
        "answer_probability": answer_probability(likelihood.nll),
        STAYED_METRIC: exact_memorization(likelihood.without_end(likelihood.correct)),
        **{name: getattr(likelihood, name) for name in LOGIT_METRICS},
        **({KL_METRIC: likelihood.mean_kl} if with_kl else {}),
        **raw_scores(None if raw is None else raw.text, recall),
        **guarded_scores(guarded, guarded_recall),
    }
    return scored_example(
        example,
        scores,
        raw_answer="" if raw is None else raw.text,
        guarded=guarded,
        prompt_energy=likelihood.prompt_energy,
        answer_energy=likelihood.answer_energy,
    )


def _key(settings: EvaluateSettings, guarded: GuardedModel, sets: Sequence[NamedSet]) -> str:
    """What the result depends on: weights, gate, rows, settings without places, version."""
    rows = [[named.name, named.kind, [content_hash(example) for example in named.examples]] for named in sets]
    gate = None if guarded.gate is None else guarded.gate.fingerprint
    original = [] if settings.original is None else [weights_name(settings.original)]
    redact = ["redacted"] if settings.redact else []
    return fingerprint([__version__, weights_name(settings.model), gate, rows, identity(settings), *original, *redact])
