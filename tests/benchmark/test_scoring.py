"""One pass for everything: trees give what rows give, drafts what plain generation gives, and nothing is computed twice."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

import tiny_models
from benchmark.conftest import World
from d2unlearn.benchmark.cache import ResultCache
from d2unlearn.benchmark.conventions import OPEN_UNLEARNING, OURS, Convention
from d2unlearn.benchmark.greedy import GreedyRequest, decodes_plainly, draft_of, greedy_answers
from d2unlearn.benchmark.loglikelihood import AnswerScores, ScoreRequest, answer_scores, score_answers, trees_agree
from d2unlearn.benchmark.prefix_tree import grow, pad_trees
from d2unlearn.data.template import Template
from d2unlearn.data.tofu import read_tofu
from d2unlearn.errors import ArtifactError
from d2unlearn.models import load_model, load_tokenizer
from d2unlearn.quantities import Entropy, LogProbVariance, LogSumExp, MostLikely, Nll
from d2unlearn.schema import Tokens


def row(*ids: int, prompt: int = 1, name: str = "r") -> Tokens:
    return Tokens(name, ids, (False,) * prompt + (True,) * (len(ids) - prompt))


def family(seed: int, n: int = 5) -> list[Tokens]:
    """Rows that share a prompt and often the beginning of the answer."""
    rng = np.random.default_rng(seed)
    prompt = [int(i) for i in rng.integers(4, 100, size=rng.integers(2, 8))]
    trunk = [int(i) for i in rng.integers(4, 100, size=9)]
    rows = []
    for index in range(n):
        kept = int(rng.integers(0, 9))
        rest = [int(i) for i in rng.integers(4, 100, size=rng.integers(1, 6))]
        rows.append(row(*prompt, *trunk[:kept], *rest, prompt=len(prompt), name=f"{seed}-{index}"))
    return rows


# -- trees --------------------------------------------------------------------------------------------------------------


def test_a_tree_has_one_node_for_every_distinct_beginning() -> None:
    tree = grow([row(1, 5, 6, 7, 2), row(1, 5, 8, 2), row(1, 5, 6, 9)])
    assert tree.ids == (1, 5, 6, 7, 8)  # the last token of a row predicts nothing, so it is no node
    assert tree.parents == (-1, 0, 1, 2, 1)
    assert tree.depths == (0, 1, 2, 3, 2)
    assert tree.paths == ((0, 1, 2, 3), (0, 1, 4), (0, 1, 2))
    seen = tree.sees()
    assert [set(np.flatnonzero(each).tolist()) for each in seen] == [{0}, {0, 1}, {0, 1, 2}, {0, 1, 2, 3}, {0, 1, 4}]


def test_rows_with_nothing_in_common_grow_from_roots_of_their_own_and_empty_ones_not_at_all() -> None:
    tree = grow([row(1, 2, 3), row(4, 2, 3), row(7), Tokens("none", (), ())])
    assert tree.parents == (-1, 0, -1, 2)
    assert tree.paths == ((0, 1), (2, 3), (), ())
    assert not tree.sees()[3, 0]


def test_padding_sees_itself_alone_and_is_seen_by_nobody() -> None:
    _, mask, positions = pad_trees([grow([row(1, 5, 6)]), grow([row(1, 5, 6, 7, 8)])], torch.float32)
    open_places = mask[0, 0] == 0
    assert open_places.tolist() == [
        [True, False, False, False],
        [True, True, False, False],
        [False, False, True, False],
        [False, False, False, True],
    ]
    assert float(mask[0, 0, 0, 1]) == torch.finfo(torch.float32).min
    assert positions.tolist() == [[0, 1, 0, 0], [0, 1, 2, 3]]


def naive(model: torch.nn.Module, tokens: Tokens, convention: Convention) -> AnswerScores:
    """One row by itself, full logits."""
    ids = torch.tensor([tokens.input_ids])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, :-1].double()
    places = torch.tensor(tokens.answer_mask[1:])
    targets = ids[0, 1:][places].tolist()
    log_p = torch.log_softmax(logits[places], -1)
    values = {
        LogSumExp(): torch.logsumexp(logits[places], -1).numpy(),
        Nll(): -log_p[range(len(targets)), targets].numpy(),
        MostLikely(): log_p.argmax(-1).double().numpy(),
        Entropy(): -(log_p.exp() * log_p).sum(-1).numpy(),
        LogProbVariance(): ((log_p.exp() * log_p.square()).sum(-1) - (log_p.exp() * log_p).sum(-1).square()).numpy(),
    }
    return answer_scores(values, targets, convention, thorough=True)


def scores_of(
    model: torch.nn.Module,
    requests: list[ScoreRequest],
    convention: Convention,
    *,
    batch_size: int = 4,
    trees: bool = True,
) -> dict[Tokens, AnswerScores]:
    passes = score_answers(model, requests, convention, batch_size=batch_size, trees=trees)  # type: ignore[arg-type]
    found = [pair for part in passes for pair in part]
    assert sorted(request.tokens.example_id for request, _ in found) == sorted(r.tokens.example_id for r in requests)
    return {request.tokens: scores for request, scores in found}


def assert_alike(one: AnswerScores, other: AnswerScores) -> None:
    for name in AnswerScores.__dataclass_fields__:
        a, b = getattr(one, name), getattr(other, name)
        assert a == pytest.approx(b, rel=2e-4, abs=2e-5, nan_ok=True), name


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "gemma2", "cohere", "granite"])
@pytest.mark.parametrize("convention", [OURS, OPEN_UNLEARNING], ids=lambda c: c.name)
def test_a_question_scored_as_a_tree_has_the_scores_of_each_answer_by_itself(name: str, convention: Convention) -> None:
    model = tiny_models.FAMILIES[name]()
    requests = [ScoreRequest(tokens, thorough=True, question=seed) for seed in range(3) for tokens in family(seed)]
    found = scores_of(model, requests, convention)
    assert len(found) == 15
    for tokens, scores in found.items():
        assert_alike(scores, naive(model, tokens, convention))


def test_neither_the_batch_nor_the_order_nor_the_layout_changes_a_score() -> None:
    model = tiny_models.llama()
    requests = [ScoreRequest(each, i == 0, i == 0, seed) for seed in range(4) for i, each in enumerate(family(seed))]
    plain = scores_of(model, requests, OURS, trees=False, batch_size=1)
    for convention in (OURS, OPEN_UNLEARNING):
        for batch_size in (1, 3, 64):
            found = scores_of(model, requests, convention, batch_size=batch_size)
            for tokens, scores in found.items():
                assert scores.nll == pytest.approx(plain[tokens].nll, rel=1e-5)
                assert scores.answer_energy == pytest.approx(plain[tokens].answer_energy, rel=1e-5)
    backwards = scores_of(model, requests[::-1], OURS)
    for tokens, scores in backwards.items():
        assert scores.nll == pytest.approx(plain[tokens].nll, rel=1e-5)


def test_only_the_true_answer_is_scored_in_full_and_an_answer_without_tokens_not_at_all() -> None:
    model = tiny_models.llama()
    true, other = row(1, 5, 6, 7, prompt=2), row(1, 5, 6, 8, prompt=2)
    found = scores_of(model, [ScoreRequest(true, True), ScoreRequest(other, False)], OURS)
    assert math.isnan(found[other].exact_memorization)
    assert found[true].exact_memorization in (0.0, 0.5, 1.0)
    empty = scores_of(model, [ScoreRequest(row(1, 5, prompt=2), True), ScoreRequest(Tokens("none", (), ()), True)], OURS)
    for scores in empty.values():
        assert scores.n == 0
        assert math.isnan(scores.nll)
        assert math.isnan(scores.extraction_strength)


def test_the_memory_of_a_pass_does_not_grow_with_vocabulary_times_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor of B * T * V numbers is made: the largest that the head makes is a chunk's."""
    from d2unlearn.benchmark import loglikelihood

    monkeypatch.setattr(loglikelihood, "PASS_LOGITS", 10 * tiny_models.VOCABULARY)
    largest: list[int] = []
    linear = torch.nn.functional.linear

    def watched(*arguments: torch.Tensor, **options: torch.Tensor) -> torch.Tensor:
        out = linear(*arguments, **options)
        if out.shape[-1] == tiny_models.VOCABULARY:
            largest.append(out.numel())
        return out

    monkeypatch.setattr(torch.nn.functional, "linear", watched)
    model = tiny_models.llama()
    long = [ScoreRequest(row(*range(4, 100), *range(4, 60), prompt=2), True, question=i) for i in range(3)]
    scores_of(model, long, OURS)
    assert max(largest) == 10 * tiny_models.VOCABULARY


def test_a_model_that_does_not_take_positions_and_masks_of_ones_own_is_found_out() -> None:
    model = tiny_models.llama()
    assert trees_agree(model, family(0))
    deaf = tiny_models.llama()
    forward = deaf.forward

    def without_positions(*arguments: object, **options: object) -> object:
        return forward(*arguments, **{**options, "position_ids": None})

    deaf.forward = without_positions  # type: ignore[method-assign]
    assert not trees_agree(deaf, family(0))

    def no_such_mask(*_: object, **options: object) -> object:
        mask = options["attention_mask"]
        if isinstance(mask, torch.Tensor) and mask.ndim == 4:
            raise ValueError("a mask of this form is not known")
        return forward(**options)

    deaf.forward = no_such_mask  # type: ignore[method-assign]
    assert not trees_agree(deaf, family(0))


# -- answers ------------------------------------------------------------------------------------------------------------


def test_a_draft_is_the_true_answer_as_far_as_it_is_right_and_one_token_more() -> None:
    truth = row(1, 5, 6, 7, 8, 2, prompt=2)

    def drafted(right: int, instead: int, limit: int = 99) -> GreedyRequest:
        return draft_of(truth, AnswerScores(4, 0.0, 0.0, 0.0, right=right, instead=instead), (1, 5), [2], limit)

    assert drafted(0, 9) == GreedyRequest((1, 5), 99, (9,))
    assert drafted(2, 9) == GreedyRequest((1, 5), 99, (6, 7, 9))
    assert drafted(2, 2) == GreedyRequest((1, 5), 99, (6, 7, 2), done=True)  # it ends the answer there
    assert drafted(4, -1) == GreedyRequest((1, 5), 99, (6, 7, 8, 2), done=True)  # all of it is right, the end included
    assert drafted(4, -1, limit=2) == GreedyRequest((1, 5), 2, (6, 7), done=True)
    other = draft_of(truth, AnswerScores(4, 0.0, 0.0, 0.0, right=2, instead=9), (1, 6), [2], 99)
    assert other == GreedyRequest((1, 6), 99)  # another prompt: nothing is known


@pytest.mark.parametrize("limit", [1, 7, 40])
def test_drafts_and_rounds_give_what_plain_generation_gives(world: World, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from d2unlearn.benchmark import greedy

    monkeypatch.setattr(greedy, "ROUNDS", (3, 5))
    tokenizer = load_tokenizer(world.knows)
    template = Template(tokenizer)
    examples = [e for split in ("forget10_perturbed", "retain_perturbed", "holdout10") for e in read_tofu(split, world.data)]
    rows = [template.tokens(example) for example in examples]
    prompts = [tuple(template.prompt_ids(example.prompt)) for example in examples]
    for folder in (world.knows, world.never_knew):
        model = load_model(folder)
        found = scores_of(model, [ScoreRequest(tokens, True, question=i) for i, tokens in enumerate(rows)], OURS)
        drafts = [draft_of(rows[i], found[rows[i]], prompts[i], [2], limit) for i in range(len(rows))]
        drafted, plain = (
            {
                request.prompt: tokens
                for part in greedy_answers(model, requests, ends=[2], pad_id=0, batch_size=3)
                for request, tokens in part
            }
            for requests in (drafts, [GreedyRequest(prompt, limit) for prompt in prompts])
        )
        assert drafted == plain
        assert set(plain) == set(prompts)
        for prompt in prompts[::5]:
            ids = torch.tensor([prompt])
            alone = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=limit, do_sample=False, pad_token_id=0
            )
            assert tuple(alone[0, len(prompt) :].tolist()) == plain[prompt]
        if folder == world.knows and limit == 40:
            known = [draft.done for draft in drafts]
            assert any(known)  # some answers need no generation at all
            assert not all(known)


def test_generation_settings_that_choose_other_tokens_rule_drafts_out() -> None:
    assert decodes_plainly(None)
    assert decodes_plainly(GenerationConfig(max_new_tokens=5, eos_token_id=2, repetition_penalty=1.0))
    for setting in ({"repetition_penalty": 1.2}, {"no_repeat_ngram_size": 3}, {"suppress_tokens": [5]}, {"min_new_tokens": 4}):
        assert not decodes_plainly(GenerationConfig(**setting))


# -- the cache ----------------------------------------------------------------------------------------------------------


class Ask(NamedTuple):
    """A request by its key alone."""

    key: object


def answered_with(**results: Any) -> Any:
    """Answers each request with what is given under its key."""

    def compute(missing: list[Ask]) -> Any:
        for request in missing:
            yield [(request, results[str(request.key)])]

    return compute


def not_reached(missing: list[Ask]) -> Any:
    raise AssertionError(f"computed again: {missing}")


def test_results_survive_and_a_line_cut_short_is_left_out(tmp_path: Path) -> None:
    output = tmp_path / "result"
    with ResultCache(output, "a") as cache:
        cache.cached("k", [Ask("x"), Ask("y"), Ask("z")], answered_with(x=[1, 0.1, None], y="text", z=math.nan))
    file = tmp_path / "result.partial" / "results.jsonl"
    file.write_text(file.read_text()[:-8])  # killed while it wrote the last line
    with ResultCache(output, "a") as again:
        assert len(again) == 2
        assert again.cached("k", [Ask("x"), Ask("y")], not_reached) == [[1, 0.1, None], "text"]
        assert again.cached("k", [Ask("y"), Ask("z")], answered_with(z=2.0)) == ["text", 2.0]
    with ResultCache(output, "a") as third:
        assert third.cached("k", [Ask("z")], not_reached) == [2.0]
        third.discard()
    assert not file.parent.exists()


def test_results_of_another_model_convention_or_kind_are_not_taken(tmp_path: Path) -> None:
    with ResultCache(tmp_path / "o", "a") as cache:
        assert cache.cached("k", [Ask("x")], answered_with(x=1)) == [1]
        assert cache.cached("other kind", [Ask("x")], answered_with(x=2)) == [2]
    with ResultCache(tmp_path / "o", "b") as other:
        assert len(other) == 2
        assert other.cached("k", [Ask("x")], answered_with(x=3)) == [3]


def test_a_place_that_cannot_be_written_is_said_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot write"), ResultCache(tmp_path / "file" / "o", "a"):
        raise AssertionError("not reached")


def test_each_request_is_computed_once_and_kept_part_by_part(tmp_path: Path) -> None:
    asked: list[list[object]] = []

    def compute(missing: list[Ask]) -> Any:
        asked.append([request.key for request in missing])
        for request in reversed(missing):
            yield [(request, f"{request.key}!")]

    def killed(missing: list[Ask]) -> Any:
        yield [(missing[0], f"{missing[0].key}!")]
        raise KeyboardInterrupt

    requests = [Ask("a"), Ask("b"), Ask("a"), Ask("c")]
    with ResultCache(tmp_path / "o", "k") as cache:
        with pytest.raises(KeyboardInterrupt):
            cache.cached("k", requests, killed)
        assert cache.cached("k", requests, compute) == ["a!", "b!", "a!", "c!"]
        assert cache.cached("k", requests, compute) == ["a!", "b!", "a!", "c!"]
    assert asked == [["b", "c"]]  # the first was kept before the kill, the repeated one was never asked for twice
