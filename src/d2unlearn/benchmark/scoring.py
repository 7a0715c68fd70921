"""Everything that a model has to say about one set of a benchmark, each thing once: likelihoods, answers, guarded answers,
gradients. Results are kept on disk at once, batch by batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace

from transformers import PreTrainedModel

from d2unlearn.benchmark.cache import ResultCache
from d2unlearn.benchmark.datasets import LoadedSet, answers_in
from d2unlearn.benchmark.gradients import gradient_norms
from d2unlearn.benchmark.greedy import GreedyRequest, decodes_plainly, draft_of, greedy_answers
from d2unlearn.benchmark.guarded_answers import GuardedRequest, guarded_answers
from d2unlearn.benchmark.loglikelihood import AnswerScores, ScoreRequest, score_answers, trees_agree
from d2unlearn.benchmark.metrics import TRUE_ANSWER, GeneratedAnswer, SetScores
from d2unlearn.benchmark.rendering import Renderer
from d2unlearn.benchmark.suites import SetSpec, Suite, attacked_sets
from d2unlearn.data.muse import PREFIX
from d2unlearn.generation.guarded import Answer, GuardedModel
from d2unlearn.metrics.text import NO_ROUGE, Rouge, rouge
from d2unlearn.models import end_token_ids, pad_token_id, state_hash
from d2unlearn.runtime import progress, say
from d2unlearn.schema import Example, Message, Tokens

TEXT_TOKENS = 2048
"""Tokens of a continuation that are scored at most, as in MUSE."""


@dataclass(frozen=True)
class Rendered:
    """One example as token ids. prompt: what an answer is generated to; rows: each column's answers after the prompt.

    `guarded_prompt`: what is asked behind the gate; a passage to continue is asked for as a question.
    """

    example: Example
    prompt: tuple[int, ...]
    rows: Mapping[str, tuple[Tokens, ...]]
    guarded_prompt: tuple[Message, ...]

    @property
    def row(self) -> Tokens:
        """The row with the true answer."""
        return self.rows[TRUE_ANSWER][0]


@dataclass(frozen=True)
class Scorer:
    """A model and how it is scored. `trees`: it takes answers laid out as a tree. `reference`: for the reference attack."""

    guarded: GuardedModel
    renderer: Renderer
    cache: ResultCache
    suite: Suite
    batch_size: int
    gradient_norm: bool
    reference: PreTrainedModel | None = None
    trees: bool = True


def render_example(renderer: Renderer, spec: SetSpec, example: Example) -> Rendered:
    """An example's prompt and all of its answers."""
    if spec.style == "text":
        prefix = str(example.extra.get(PREFIX, ""))
        row = renderer.continuation(example.example_id, prefix, example.answer, TEXT_TOKENS)
        return Rendered(example, tuple(renderer.prefix_ids(prefix)), {TRUE_ANSWER: (row,)}, (Message("user", prefix),))
    prompt = tuple(renderer.prompt_ids(example.prompt))
    answers = {TRUE_ANSWER: [example.answer], **{column: answers_in(example, column) for column in spec.others}}
    rows = {column: tuple(renderer.row(example, answer, prompt) for answer in some) for column, some in answers.items()}
    return Rendered(example, prompt, rows, renderer.prompt(example.prompt))


def takes_trees(model: PreTrainedModel, rows: Sequence[Tokens]) -> bool:
    """Whether trees can be used, tried on the answers to one question; says so where they cannot."""
    if len(rows) < 2 or trees_agree(model, rows):
        return True
    say(f"{type(model).__name__} scores answers row by row: it does not take several answers to a question at once")
    return False


def score_set(scorer: Scorer, loaded: LoadedSet) -> SetScores:
    """A set's scores; guarded answers are none without a gate, or where nothing is generated."""
    name, spec = loaded.name, loaded.spec
    if not loaded.examples:
        return SetScores(name, spec.kind, missing=loaded.missing)
    rendered = [render_example(scorer.renderer, spec, example) for example in loaded.examples]
    columns = _likelihoods(scorer, name, rendered)
    scored = SetScores(name, spec.kind, loaded.examples, tuple(scores for (scores,) in columns.pop(TRUE_ANSWER)), columns)
    if name in attacked_sets(scorer.suite):
        scored = _with_attacks(scorer, scored, rendered)
    return _with_answers(scorer, scored, spec, rendered) if spec.limit else scored


def _likelihoods(scorer: Scorer, name: str, rendered: Sequence[Rendered]) -> dict[str, tuple[tuple[AnswerScores, ...], ...]]:
    """Every answer of every example, teacher-forced: {column: for each example the scores of its answers}."""
    attacked = name in attacked_sets(scorer.suite)
    requests = [
        ScoreRequest(row, column == TRUE_ANSWER, attacked and column == TRUE_ANSWER, question)
        for question, example in enumerate(rendered)
        for column, rows in example.rows.items()
        for row in rows
    ]
    scores = iter(_scores(scorer, scorer.guarded.model, "likelihood", requests, trees=scorer.trees, name=name))
    by_example = [{column: tuple(next(scores) for _ in rows) for column, rows in e.rows.items()} for e in rendered]
    return {column: tuple(columns[column] for columns in by_example) for column in rendered[0].rows}


def _scores(
    scorer: Scorer, model: PreTrainedModel, kind: str, requests: Sequence[ScoreRequest], *, trees: bool, name: str
) -> list[AnswerScores]:
    def compute(missing: list[ScoreRequest]) -> Iterator[list[tuple[ScoreRequest, object]]]:
        passes = score_answers(
            model,
            missing,
            scorer.renderer.convention,
            batch_size=scorer.batch_size,
            hidden_token=scorer.renderer.hidden_token,
            trees=trees,
            name=name,
        )
        for scored in passes:
            yield [(request, astuple(scores)) for request, scores in scored]

    return [AnswerScores(*result) for result in scorer.cache.cached(kind, requests, compute)]


def _with_attacks(scorer: Scorer, scored: SetScores, rendered: Sequence[Rendered]) -> SetScores:
    """The set with what the membership attacks need besides likelihoods."""
    requests = [ScoreRequest(example.row, thorough=False) for example in rendered]
    texts = tuple(scorer.renderer.answer_text(example.example.answer, example.row) for example in rendered)
    gradients = _gradients(scorer, scored.name, requests) if scorer.gradient_norm else []
    model, losses = scorer.reference, list[float]()
    if model is not None:
        kind, name = f"likelihood by {state_hash(model)}", f"reference model, {scored.name}"
        losses = [scores.nll for scores in _scores(scorer, model, kind, requests, trees=False, name=name)]
    return replace(scored, texts=texts, gradients=tuple(gradients), reference_nll=tuple(losses))


def _gradients(scorer: Scorer, name: str, requests: Sequence[ScoreRequest]) -> list[float]:
    def compute(missing: list[ScoreRequest]) -> Iterator[list[tuple[ScoreRequest, object]]]:
        norms = gradient_norms(scorer.guarded.model, [request.tokens for request in missing], scorer.renderer.convention)
        for request, norm in zip(missing, progress(norms, f"gradients, {name}", total=len(missing)), strict=True):
            yield [(request, norm)]

    return scorer.cache.cached("gradient norm", requests, compute)


def _with_answers(scorer: Scorer, scored: SetScores, spec: SetSpec, rendered: Sequence[Rendered]) -> SetScores:
    """The set with greedy answers, raw and (where there is a gate) guarded, cleaned and cut alike."""
    guarded, renderer = scorer.guarded, scorer.renderer
    decisions: list[Answer] = []
    if guarded.gate is not None:
        requests = [GuardedRequest(example.guarded_prompt, spec.limit) for example in rendered]
        answers = guarded_answers(guarded, scorer.cache, requests, batch_size=scorer.batch_size, name=scored.name)
        decisions = [replace(answer, text=_cut(renderer.cleaned(answer.text), spec.stops)) for answer in answers]
    raw = _raw_answers(scorer, scored, spec, rendered, decisions)
    return replace(
        scored,
        generated=tuple(_generated(scorer, example, text) for example, text in zip(rendered, raw, strict=True)),
        guarded=tuple(_generated(scorer, e, answer.text) for e, answer in zip(rendered, decisions, strict=bool(decisions))),
        decisions=tuple(decisions),
    )


def _raw_answers(
    scorer: Scorer, scored: SetScores, spec: SetSpec, rendered: Sequence[Rendered], decisions: Sequence[Answer]
) -> list[str]:
    """The model's own greedy answers. What the gate let pass was generated already, where the prompt is the same."""
    passed: list[str | None] = [None] * len(rendered)
    for index, answer in enumerate(decisions):
        example = rendered[index]
        if not answer.refused and scorer.guarded.template.prompt_ids(example.guarded_prompt) == list(example.prompt):
            passed[index] = answer.text
    rest = [index for index, text in enumerate(passed) if text is None]
    drafts = [_draft(scorer, rendered[index], scored.true[index], spec.limit) for index in rest]
    texts = iter(_greedy_texts(scorer, scored.name, drafts))
    return [_cut(next(texts), spec.stops) if text is None else text for text in passed]


def _draft(scorer: Scorer, example: Rendered, true: AnswerScores, limit: int) -> GreedyRequest:
    """What the true answer's scores show already of the greedy answer."""
    model = scorer.guarded.model
    if not decodes_plainly(model.generation_config) or scorer.renderer.hidden_token in example.prompt:
        return GreedyRequest(example.prompt, limit)
    return draft_of(example.row, true, example.prompt, end_token_ids(model, scorer.guarded.tokenizer), limit)


def _greedy_texts(scorer: Scorer, name: str, drafts: Sequence[GreedyRequest]) -> list[str]:
    model, tokenizer, renderer = scorer.guarded.model, scorer.guarded.tokenizer, scorer.renderer

    def compute(missing: list[GreedyRequest]) -> Iterator[list[tuple[GreedyRequest, object]]]:
        passes = greedy_answers(
            model,
            missing,
            ends=end_token_ids(model, tokenizer),
            pad_id=pad_token_id(tokenizer),
            batch_size=scorer.batch_size,
            hidden_token=renderer.hidden_token,
            name=name,
        )
        for answered in passes:
            yield [(request, renderer.text(tokens)) for request, tokens in answered]

    return scorer.cache.cached("greedy answer", drafts, compute)


def _generated(scorer: Scorer, example: Rendered, text: str) -> GeneratedAnswer:
    renderer = scorer.renderer
    truth = renderer.truth(example.example.answer, example.prompt, example.row)
    return GeneratedAnswer(renderer.text(example.prompt), truth, text, rouge_of(truth, text, scorer))


def rouge_of(truth: str, text: str, scorer: Scorer) -> Rouge:
    """ROUGE as suite and convention count it."""
    convention = scorer.renderer.convention
    scores = rouge(truth, text, stemmer=scorer.suite.stems or convention.stems_always)
    return Rouge(0.0, 0.0, 0.0) if scores == NO_ROUGE and convention.empty_is_zero else scores


def _cut(text: str, stops: Sequence[str]) -> str:
    """The text up to the first of the stops, in their order, without space around it."""
    for stop in stops:
        text = text.split(stop)[0]
    return text.strip()
