"""The two conventions: where they differ, each difference by hand, and that the table of differences names all of them."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from typing import get_type_hints

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

import tiny_models
from d2unlearn.benchmark.conventions import CONVENTIONS, DIFFERENCES, OPEN_UNLEARNING, OURS, convention_named
from d2unlearn.benchmark.loglikelihood import ScoreRequest, answer_scores, score_answers
from d2unlearn.benchmark.rendering import ChatFormat, Renderer
from d2unlearn.config import BenchmarkSettings
from d2unlearn.errors import ConfigError
from d2unlearn.fields import Limit, marker_of
from d2unlearn.metrics.memorization import (
    TRUTH_AGGREGATORS,
    extraction_strength,
    option_probability,
    truth_ratio,
)
from d2unlearn.quantities import Entropy, LogProbVariance, LogSumExp, MostLikely, Nll
from d2unlearn.schema import Example, Message, Tokens

QUESTION = (Message("user", "What is the capital of France"),)


NO_FORMAT = ChatFormat()


def example(answer: str = "it is Paris", prompt: tuple[Message, ...] = QUESTION) -> Example:
    return Example("row-0", prompt, answer, "rows.jsonl:1")


def test_every_switch_that_differs_is_explained_once_and_nothing_else_is() -> None:
    ours, theirs = asdict(OURS), asdict(OPEN_UNLEARNING)
    differing = {name for name in ours if ours[name] != theirs[name]} - {"name"}
    assert sorted(each.switch for each in DIFFERENCES) == sorted(differing)
    for each in DIFFERENCES:
        assert "" not in (each.touches, each.theirs, each.ours, each.effect)


def test_ours_is_the_default_and_the_settings_offer_both() -> None:
    assert convention_named("d2unlearn") is OURS
    offered = marker_of(get_type_hints(BenchmarkSettings, include_extras=True)["convention"], Limit)
    assert offered is not None
    assert [name for name in CONVENTIONS if offered.holds(name)] == ["d2unlearn", "open-unlearning"]
    with pytest.raises(ConfigError, match="convention 'mine' is not known; choose one of d2unlearn, open-unlearning"):
        convention_named("mine")


# -- the numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("correct", "ours", "floored"),
    [
        ([False, False, False, False], 0.0, 0.25),  # nothing right
        ([False, False, False, True], 0.25, 0.25),  # the last token right: the same number there
        ([True, True, True, False], 0.0, 0.25),
        ([True, False, True, True], 0.5, 0.5),
        ([False], 0.0, 1.0),
    ],
)
def test_the_floor_of_extraction_strength_counts_nothing_right_as_the_last_token_right(
    correct: list[bool], ours: float, floored: float
) -> None:
    assert extraction_strength(correct) == ours
    assert extraction_strength(correct, floor=True) == floored


def values_of(targets: list[int], given: list[int], nll: list[float]) -> dict[object, np.ndarray]:
    n = len(targets)
    return {
        LogSumExp(): np.linspace(1.0, 2.0, n),
        Nll(): np.array(nll),
        MostLikely(): np.array(given, dtype=float),
        Entropy(): np.full(n, 1.0),
        LogProbVariance(): np.full(n, 4.0),
    }


def test_the_last_token_counts_in_ours_and_is_left_out_there_but_not_of_the_likelihood() -> None:
    values = values_of([5, 6, 7, 2], [5, 9, 7, 2], [0.5, 3.0, 0.25, 4.0])
    ours = answer_scores(values, [5, 6, 7, 2], OURS, thorough=True)
    theirs = answer_scores(values, [5, 6, 7, 2], OPEN_UNLEARNING, thorough=True)
    assert ours.nll == theirs.nll == pytest.approx(7.75 / 4, rel=1e-12)
    assert (ours.exact_memorization, theirs.exact_memorization) == (0.75, pytest.approx(2 / 3))
    assert (ours.extraction_strength, theirs.extraction_strength) == (0.5, pytest.approx(1 / 3))
    assert (ours.min_k, theirs.min_k) == (4.0, 3.0)
    assert (ours.min_k_plus_plus, theirs.min_k_plus_plus) == (pytest.approx(1.5), pytest.approx(1.0))
    assert (ours.right, ours.instead) == (theirs.right, theirs.instead) == (1, 9)
    assert (ours.prompt_energy, ours.answer_energy) == (-1.0, pytest.approx(-1.5))


def test_an_answer_of_one_token_has_nothing_left_without_its_last() -> None:
    values = values_of([5], [5], [0.5])
    assert answer_scores(values, [5], OURS, thorough=True).extraction_strength == 1.0
    theirs = answer_scores(values, [5], OPEN_UNLEARNING, thorough=True)
    assert math.isnan(theirs.extraction_strength)
    assert theirs.right == 1


def test_ratios_of_logarithms_hold_where_added_epsilons_drown_the_probabilities() -> None:
    right, wrong = 40.0, [39.0, 41.0]  # both answers about exp(-40), far under 1e-10
    assert truth_ratio(right, wrong) == pytest.approx(1.0, rel=1e-12)
    assert truth_ratio(right, wrong, epsilon=1e-10) == pytest.approx(math.exp(-40) / 1e-10, rel=1e-3)
    assert option_probability(right, wrong) == pytest.approx(1 / (1 + math.e + 1 / math.e), rel=1e-12)
    assert option_probability(right, wrong, epsilon=1e-10) < 1e-6
    # and agree where they do not
    assert truth_ratio(1.0, [2.0, 3.0], epsilon=1e-10) == pytest.approx(truth_ratio(1.0, [2.0, 3.0]), rel=1e-9)


def test_a_truth_ratio_is_finite_whatever_the_model_says() -> None:
    assert 0 < truth_ratio(0.0, [1e6]) < 1e-300
    assert 1e300 < truth_ratio(1e6, [0.0]) < math.inf
    assert TRUTH_AGGREGATORS["closer_to_1_better"](truth_ratio(1e6, [0.0])) < 1e-300
    assert math.isnan(truth_ratio(math.nan, [1.0]))
    assert math.isnan(truth_ratio(1.0, []))
    assert math.isnan(option_probability(1.0, [math.nan]))


@pytest.mark.parametrize("epsilon", [0.0, 1e-10])
def test_the_aggregators_of_the_truth_ratio(epsilon: float) -> None:
    e = math.e
    likelier = truth_ratio(1.0, [2.0, 2.0], epsilon=epsilon)  # the right answer is e times likelier
    kept = {name: aggregate(likelier, epsilon=epsilon) for name, aggregate in TRUTH_AGGREGATORS.items()}
    assert kept == pytest.approx({"closer_to_1_better": 1 / e, "true_better": 1 - 1 / e}, rel=1e-8)
    reversed_ratio = truth_ratio(2.0, [1.0], epsilon=epsilon)
    assert reversed_ratio == pytest.approx(e, rel=1e-8)
    assert TRUTH_AGGREGATORS["true_better"](reversed_ratio, epsilon=epsilon) == 0.0
    assert TRUTH_AGGREGATORS["closer_to_1_better"](reversed_ratio, epsilon=epsilon) == pytest.approx(1 / e, rel=1e-8)


# -- the rows -----------------------------------------------------------------------------------------------------------


def both(tokenizer: PreTrainedTokenizerFast, chat: ChatFormat = NO_FORMAT) -> tuple[Renderer, Renderer]:
    return Renderer(tokenizer, OURS, chat), Renderer(tokenizer, OPEN_UNLEARNING, chat)


def row(renderer: Renderer, of: Example) -> tuple[list[int], Tokens]:
    prompt = renderer.prompt_ids(of.prompt)
    return prompt, renderer.row(of, of.answer, prompt)


def test_a_plain_chat_renders_alike_in_both(tokenizer: PreTrainedTokenizerFast) -> None:
    ours, theirs = both(tokenizer)
    prompt, tokens = row(ours, example())
    assert row(theirs, example()) == (prompt, replace(tokens, ends=False))  # no metric of the other's asks what ends a row
    assert tokens.input_ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode([i for i, a in zip(tokens.input_ids, tokens.answer_mask, strict=True) if a]) == "it is Paris<eos>"


def test_the_spelling_of_a_special_token_stays_text_in_ours_only(tokenizer: PreTrainedTokenizerFast) -> None:
    ours, theirs = both(tokenizer)
    typed = example(answer="it<eos>")
    eos = tokenizer.eos_token_id
    assert [row(each, typed)[1].input_ids.count(eos) for each in (ours, theirs)] == [1, 2]


def test_what_a_template_writes_after_the_end_token_is_an_answer_there(tokenizer: PreTrainedTokenizerFast) -> None:
    trailing = tiny_models.tokenizer(chat_template=tiny_models.CHAT_TEMPLATE.replace("<eos>{% endif %}", "<eos>\n{% endif %}"))
    ours, theirs = both(trailing)
    line_break = trailing.convert_tokens_to_ids("\n")
    eos = trailing.eos_token_id
    assert row(ours, example())[1].input_ids[-2:] == (row(both(tokenizer)[0], example())[1].input_ids[-2], eos)
    assert row(theirs, example())[1].input_ids[-3:] == (eos, line_break, eos)
    assert sum(row(theirs, example())[1].answer_mask) == sum(row(ours, example())[1].answer_mask) + 2


def test_without_a_chat_template_each_writes_its_own_plain_format() -> None:
    plain = tiny_models.tokenizer(chat_template=None)
    ours, theirs = both(plain)
    shots = (Message("user", "it is"), Message("assistant", "a city"), *QUESTION)
    prompt, tokens = row(theirs, example(prompt=shots))
    text = "Question: it is\nAnswer: a city\n\nQuestion: What is the capital of France\nAnswer: "
    assert plain.decode(prompt) == text
    assert tokens.input_ids == (*plain(text + "it is Paris").input_ids, plain.eos_token_id)
    # the space before the answer is a token of the prompt, and part of the answer's first token in the row: that label is lost
    assert sum(tokens.answer_mask) == len(tokens.input_ids) - len(prompt)
    assert plain.decode(row(ours, example())[0]) == "<bos>Question: What is the capital of France\nAnswer:"


def test_a_system_message_and_a_date_begin_every_conversation() -> None:
    dated = tiny_models.tokenizer(
        chat_template="{% if date_string is defined %}{{ date_string }}{% endif %}" + tiny_models.CHAT_TEMPLATE
    )
    ours, theirs = both(dated, ChatFormat(system_prompt="he is", date_string="10 Apr"))
    assert dated.decode(row(theirs, example())[0]).startswith("10 Apr<bos>he is<q>What is")
    assert dated.decode(row(ours, example())[0]).startswith("<bos>he is<q>What is")


def test_an_end_token_that_is_also_the_pad_token_is_hidden_from_attention_there(tokenizer: PreTrainedTokenizerFast) -> None:
    padded = tiny_models.tokenizer()
    padded.pad_token = padded.eos_token
    ours, theirs = both(padded)
    assert (ours.hidden_token, theirs.hidden_token) == (None, padded.eos_token_id)
    model = tiny_models.llama(vocabulary=len(padded))
    shots = example(prompt=(Message("user", "it is"), Message("assistant", "a city"), *QUESTION))
    tokens = row(ours, shots)[1]
    assert padded.eos_token_id in tokens.input_ids[:-1]

    def nll(hidden: int | None) -> float:
        passes = score_answers(model, [ScoreRequest(tokens, thorough=False)], OURS, batch_size=4, hidden_token=hidden)
        return next(iter(passes))[0][1].nll

    def naive(hidden: int | None) -> float:
        ids = torch.tensor([tokens.input_ids])
        mask = torch.ones_like(ids) if hidden is None else (ids != hidden).long()
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=mask).logits[0, :-1]
        each = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
        return float(each[torch.tensor(tokens.answer_mask[1:])].mean())

    for hidden in (ours.hidden_token, theirs.hidden_token):
        assert nll(hidden) == pytest.approx(naive(hidden), abs=1e-5)
    assert abs(naive(None) - naive(padded.eos_token_id)) > 1e-2


def test_the_truth_is_the_files_answer_in_ours_and_what_is_left_of_the_conversation_there(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    ours, theirs = both(tokenizer)
    repeats = example(answer="What is the capital of France? it is Paris", prompt=QUESTION)
    for renderer, expected in ((ours, repeats.answer), (theirs, "? it is Paris")):
        prompt, tokens = row(renderer, repeats)
        assert renderer.truth(repeats.answer, prompt, tokens) == expected
    assert theirs.answer_text("x", row(theirs, example())[1]) == "it is Paris"
    assert ours.answer_text("x", row(ours, example())[1]) == "x"


def test_spaces_before_punctuation_are_cleaned_up_there(tokenizer: PreTrainedTokenizerFast) -> None:
    ours, theirs = both(tokenizer)
    ids = tokenizer("it is a city , she 's in Paris .").input_ids
    assert ours.text(ids) == "it is a city , she 's in Paris ."
    assert theirs.text(ids) == "it is a city, she's in Paris."


def test_plain_text_is_scored_after_its_prefix_and_never_at_its_first_token(tokenizer: PreTrainedTokenizerFast) -> None:
    ours, theirs = both(tokenizer)
    for renderer in (ours, theirs):
        tokens = renderer.continuation("t", "Paris is", "a city of France", 3)
        prefix = tokenizer("Paris is").input_ids
        assert tokens.input_ids == tuple(tokenizer("Paris is a city of France").input_ids[: len(prefix) + 3])
        assert tokens.answer_mask == (False,) * len(prefix) + (True,) * 3
        alone = renderer.continuation("t", "", "Paris is a city", 100)
        assert alone.answer_mask == (False, *(True,) * (len(alone.input_ids) - 1))
        nothing = renderer.continuation("t", "", "", 100)
        assert nothing.input_ids == nothing.answer_mask == ()


def test_renderings_of_two_conventions_have_different_fingerprints(tokenizer: PreTrainedTokenizerFast) -> None:
    ours, theirs = both(tokenizer)
    asked = Renderer(tokenizer, OURS, ChatFormat(system_prompt="he is"))
    shifted = Renderer(tokenizer, replace(OURS, epsilon=1e-3))
    assert len({each.fingerprint for each in (ours, theirs, asked, shifted)}) == 4
    assert Renderer(tokenizer, OURS).fingerprint == ours.fingerprint


def test_a_convention_of_ones_own_is_a_change_of_one_switch() -> None:
    mine = replace(OURS, name="mine", strength_has_floor=True)
    values = values_of([5, 6], [8, 9], [1.0, 1.0])
    assert answer_scores(values, [5, 6], mine, thorough=True).extraction_strength == 0.5
