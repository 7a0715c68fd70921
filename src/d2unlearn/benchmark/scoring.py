"""Everything that a model has to say about one set of a benchmark, each thing once: likelihoods, answers, guarded answers,
gradients. What is found is kept on disk at once, batch by batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace

from transformers import PreTrainedModel

from d2unlearn.benchmark.cache import Findings, each_once
from d2unlearn.benchmark.datasets import LoadedSet, answers_in
from d2unlearn.benchmark.gradients import gradient_norms
from d2unlearn.benchmark.greedy import Wanted, decodes_plainly, draft_of, greedy_answers
from d2unlearn.benchmark.loglikelihood import AnswerScores, Asked, score_answers, trees_agree
from d2unlearn.benchmark.metrics import SetScores
from d2unlearn.benchmark.rendering import Renderer
from d2unlearn.benchmark.suites import SetSpec, Suite, attacked_sets
from d2unlearn.data.batching import by_length
from d2unlearn.data.muse import PREFIX
from d2unlearn.generation.guarded import Answer, GuardedModel
from d2unlearn.metrics.text import NO_ROUGE, Rouge, rouge
from d2unlearn.models import end_token_ids, pad_token_id, state_hash
from d2unlearn.runtime import fingerprint, progress, say
from d2unlearn.schema import Example, Message, Tokens

TEXT_TOKENS = 2048
"""Tokens of a continuation that are scored at most, as in MUSE."""
TRUE = "answer"


@dataclass(frozen=True)
class Rendered:
    """One example as token ids. prompt: what an answer is generated to; rows: each column's answers after the prompt."""

    example: Example
    prompt: tuple[int, ...]
    rows: Mapping[str, tuple[Tokens, ...]]

    @property
    def row(self) -> Tokens:
        """The row with the true answer."""
        return self.rows[TRUE][0]


@dataclass(frozen=True)
class Scorer:
    """A model and how it is scored. `trees`: it takes answers laid out as a tree. `reference`: for the reference attack."""

    guarded: GuardedModel
    renderer: Renderer
    findings: Findings
    suite: Suite
    batch_size: int
    gradient_norm: bool
    reference: PreTrainedModel | None = None
    trees: bool = True


def render(renderer: Renderer, spec: SetSpec, example: Example) -> Rendered:
    """An example's prompt and all of its answers."""
    if spec.style == "text":
        prefix = str(example.extra.get(PREFIX, ""))
        row = renderer.continuation(example.example_id, prefix, example.answer, TEXT_TOKENS)
        return Rendered(example, tuple(renderer.prefix_ids(prefix)), {TRUE: (row,)})
    prompt = renderer.prompt_ids(example.prompt)
    answers = {TRUE: [example.answer], **{column: answers_in(example, column) for column in spec.others}}
    rows = {column: tuple(renderer.row(example, each, prompt) for each in some) for column, some in answers.items()}
    return Rendered(example, tuple(prompt), rows)


def takes_trees(model: PreTrainedModel, rendered: Sequence[Rendered]) -> bool:
    """Whether trees can be used, tried on the first example with several answers; says so where they cannot."""
    for each in rendered:
        rows = [row for some in each.rows.values() for row in some]
        if len(rows) > 1:
            agree = trees_agree(model, rows)
            if not agree:
                say(f"{type(model).__name__} scores answers row by row: it does not take several answers to a question at once")
            return agree
    return True


def score_set(scorer: Scorer, loaded: LoadedSet) -> tuple[SetScores, list[Answer]]:
    """A set's scores and its guarded answers; those are none without a gate, or where nothing is generated."""
    spec = loaded.spec
    if not loaded.examples:
        return SetScores(loaded.name, spec.kind, missing=loaded.missing), []
    rendered = [render(scorer.renderer, spec, example) for example in loaded.examples]
    scores = likelihoods(scorer, loaded.name, rendered)
    true = [each[TRUE][0] for each in scores]
    others = {column: tuple(each[column] for each in scores) for column in spec.others}
    scored = SetScores(loaded.name, spec.kind, loaded.examples, tuple(true), others)
    if loaded.name in attacked_sets(scorer.suite):
        scored = _attackable(scorer, scored, rendered)
    guarded = guarded_answers(scorer, loaded, rendered) if spec.limit and scorer.guarded.gate is not None else []
    return (_told(scorer, scored, loaded, rendered, guarded) if spec.limit else scored), guarded


def likelihoods(scorer: Scorer, name: str, rendered: Sequence[Rendered]) -> list[dict[str, tuple[AnswerScores, ...]]]:
    """Every answer of every example, teacher-forced: {column: the scores of its answers}."""
    ranked = name in attacked_sets(scorer.suite)
    asked = [
        [Asked(row, column == TRUE, ranked and column == TRUE) for column, rows in each.rows.items() for row in rows]
        for each in rendered
    ]
    places = [(g, i) for g, group in enumerate(asked) for i in range(len(group))]
    keys = [_row_key(asked[g][i]) for g, i in places]

    def compute(missing: list[int]) -> Iterator[list[tuple[int, object]]]:
        wanted = [places[index] for index in missing]
        groups = [[place for place in wanted if place[0] == g] for g in dict.fromkeys(g for g, _ in wanted)]
        index_of = dict(zip(wanted, missing, strict=True))
        passes = score_answers(
            scorer.guarded.model,
            [[asked[g][i] for g, i in group] for group in groups],
            scorer.renderer.convention,
            batch_size=scorer.batch_size,
            hidden_token=scorer.renderer.hidden_token,
            trees=scorer.trees,
            name=name,
        )
        for scored in passes:
            yield [(index_of[groups[g][i]], astuple(scores)) for (g, i), scores in scored]

    found = iter([AnswerScores(*value) for value in each_once(scorer.findings, keys, compute)])
    return [{column: tuple(next(found) for _ in rows) for column, rows in each.rows.items()} for each in rendered]


def raw_answers(
    scorer: Scorer, loaded: LoadedSet, rendered: Sequence[Rendered], true: Sequence[AnswerScores], guarded: Sequence[Answer]
) -> list[str]:
    """The model's own greedy answers. What the gate let pass was generated already, where the prompt is the same."""
    passed: list[str | None] = [None] * len(rendered)
    for index, answer in enumerate(guarded):
        if not answer.refused and _guard_prompt_ids(scorer, loaded, rendered[index]) == list(rendered[index].prompt):
            passed[index] = answer.text
    rest = [index for index, text in enumerate(passed) if text is None]
    generated = iter(_generated(scorer, loaded, [rendered[i] for i in rest], [true[i] for i in rest]))
    return [_cut(next(generated) if text is None else text, loaded.spec.stops) for text in passed]


def guarded_answers(scorer: Scorer, loaded: LoadedSet, rendered: Sequence[Rendered]) -> list[Answer]:
    """What a user of the guarded model is told, cleaned and cut like raw answers: a passage to continue is asked for as a
    question.
    """
    guarded, limit = scorer.guarded, loaded.spec.limit
    gate = "" if guarded.gate is None else guarded.gate.fingerprint
    prompts = [_guard_prompt(scorer, loaded, each) for each in rendered]
    keys = [fingerprint(["guarded", gate, prompt, limit]) for prompt in prompts]

    def compute(missing: list[int]) -> Iterator[list[tuple[int, object]]]:
        batches = list(by_length([len(rendered[index].prompt) for index in missing], scorer.batch_size))
        for places in progress(batches, f"guarded answers, {loaded.name}", total=len(batches)):
            batch = [missing[place] for place in places]
            answers = guarded.answer([prompts[i] for i in batch], max_new_tokens=limit, batch_size=scorer.batch_size)
            yield [(index, astuple(answer)) for index, answer in zip(batch, answers, strict=True)]

    found = [Answer(*value) for value in each_once(scorer.findings, keys, compute)]
    return [replace(answer, text=_cut(scorer.renderer.cleaned(answer.text), loaded.spec.stops)) for answer in found]


def _generated(scorer: Scorer, loaded: LoadedSet, rendered: Sequence[Rendered], true: Sequence[AnswerScores]) -> list[str]:
    """Greedy answers as text, generated only where the true answer's scores do not show them already."""
    model, tokenizer, renderer, limit = scorer.guarded.model, scorer.guarded.tokenizer, scorer.renderer, loaded.spec.limit
    ends = end_token_ids(model, tokenizer)
    plain = decodes_plainly(model.generation_config)

    def wanted(index: int) -> Wanted:
        each = rendered[index]
        shown = plain and renderer.hidden_token not in each.prompt
        return draft_of(each.row, true[index], each.prompt, ends, limit) if shown else Wanted(each.prompt)

    def compute(missing: list[int]) -> Iterator[list[tuple[int, object]]]:
        passes = greedy_answers(
            model,
            [wanted(index) for index in missing],
            limit=limit,
            ends=ends,
            pad_id=pad_token_id(tokenizer),
            batch_size=scorer.batch_size,
            hidden_token=renderer.hidden_token,
            name=loaded.name,
        )
        for answered in passes:
            yield [(missing[index], renderer.text(tokens)) for index, tokens in answered]

    keys = [fingerprint(["answer", each.prompt, limit]) for each in rendered]
    return [str(text) for text in each_once(scorer.findings, keys, compute)]


def _attackable(scorer: Scorer, scored: SetScores, rendered: Sequence[Rendered]) -> SetScores:
    """The set with what the membership attacks need besides likelihoods."""
    return replace(
        scored,
        texts=tuple(scorer.renderer.answer_text(each.example.answer, each.row) for each in rendered),
        gradients=tuple(_gradients(scorer, scored.name, rendered)) if scorer.gradient_norm else (),
        reference_nll=tuple(_reference_nll(scorer, scored.name, rendered)) if scorer.reference is not None else (),
    )


def _told(
    scorer: Scorer, scored: SetScores, loaded: LoadedSet, rendered: Sequence[Rendered], guarded: Sequence[Answer]
) -> SetScores:
    """The set with the raw greedy answers and their overlap with the truth."""
    renderer = scorer.renderer
    generated = raw_answers(scorer, loaded, rendered, scored.true, guarded)
    truths = [renderer.truth(each.example.answer, each.prompt, each.row) for each in rendered]
    return replace(
        scored,
        inputs=tuple(renderer.text(each.prompt) for each in rendered),
        truths=tuple(truths),
        generated=tuple(generated),
        rouge=tuple(overlap(scorer, truth, text) for truth, text in zip(truths, generated, strict=True)),
    )


def overlap(scorer: Scorer, truth: str, text: str) -> Rouge:
    """ROUGE as suite and convention count it."""
    convention = scorer.renderer.convention
    scores = rouge(truth, text, stemmer=scorer.suite.stems or convention.stems_always)
    return Rouge(0.0, 0.0, 0.0) if scores == NO_ROUGE and convention.empty_is_zero else scores


def _gradients(scorer: Scorer, name: str, rendered: Sequence[Rendered]) -> list[float]:
    rows = [each.row for each in rendered]

    def compute(missing: list[int]) -> Iterator[list[tuple[int, object]]]:
        norms = gradient_norms(scorer.guarded.model, [rows[index] for index in missing], scorer.renderer.convention)
        for index, norm in zip(missing, progress(norms, f"gradients, {name}", total=len(missing)), strict=True):
            yield [(index, norm)]

    return [float(value) for value in each_once(scorer.findings, [fingerprint(["gradient", _ids(r)]) for r in rows], compute)]


def _reference_nll(scorer: Scorer, name: str, rendered: Sequence[Rendered]) -> list[float]:
    """Mean NLL of the true answers under the reference model."""
    model = scorer.reference
    assert model is not None
    rows = [each.row for each in rendered]
    weights = state_hash(model)

    def compute(missing: list[int]) -> Iterator[list[tuple[int, object]]]:
        asked = [[Asked(rows[index], thorough=False)] for index in missing]
        passes = score_answers(
            model,
            asked,
            scorer.renderer.convention,
            batch_size=scorer.batch_size,
            hidden_token=scorer.renderer.hidden_token,
            trees=False,
            name=f"reference model, {name}",
        )
        for scored in passes:
            yield [(missing[g], scores.nll) for (g, _), scores in scored]

    keys = [fingerprint(["reference", weights, _ids(row)]) for row in rows]
    return [float(value) for value in each_once(scorer.findings, keys, compute)]


def _guard_prompt(scorer: Scorer, loaded: LoadedSet, each: Rendered) -> tuple[Message, ...]:
    if loaded.spec.style == "text":
        return (Message("user", str(each.example.extra.get(PREFIX, ""))),)
    return scorer.renderer.prompt(each.example.prompt)


def _guard_prompt_ids(scorer: Scorer, loaded: LoadedSet, each: Rendered) -> list[int]:
    return scorer.guarded.template.prompt_ids(_guard_prompt(scorer, loaded, each))


def _row_key(asked: Asked) -> str:
    return fingerprint(["row", asked.thorough, _ids(asked.tokens)])


def _ids(row: Tokens) -> list[object]:
    """A row's tokens and where its answer begins."""
    return [row.input_ids, row.answer_mask.index(True) if True in row.answer_mask else None]


def _cut(text: str, stops: Sequence[str]) -> str:
    """The text up to the first of the stops, in their order, without space around it."""
    for stop in stops:
        text = text.split(stop)[0]
    return text.strip()
