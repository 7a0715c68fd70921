"""What a stream shows of an answer that is refused: nothing, or what was let pass less what was held back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.generation.streamers import BaseStreamer

from d2unlearn.errors import GateError
from d2unlearn.gate import EnergyGate
from d2unlearn.gate.rule import GateRule
from d2unlearn.gate.score import FirstTokens, Highest, TrailingWindow, running_scores
from d2unlearn.refusals import refusal_index

from .conftest import Halves, halves
from .test_decoding_ways import ASSISTED
from .ways import WORDS, Raw, family, inputs, options_of, prompts, raw, rule, trusting


class Collected(BaseStreamer):
    """Notes what it is handed."""

    def __init__(self) -> None:
        self.values: list[list[int]] = []
        self.ended = 0

    def put(self, value: torch.Tensor) -> None:
        self.values.append(value.reshape(-1).tolist())

    def end(self) -> None:
        self.ended += 1

    @property
    def tokens(self) -> list[int]:
        return [token for value in self.values[1:] for token in value]


@pytest.fixture(scope="module")
def uneven() -> PreTrainedModel:
    return family("llama")


def streamed(model: PreTrainedModel, made: GateRule, prompt: list[int], hold_back: int, way: dict[str, Any]) -> list[int]:
    streamer = Collected()
    options = options_of({**way, "streamer": streamer})
    given = inputs([prompt])
    trusting(model, made).generate(made, given["input_ids"], given["attention_mask"], options, hold_back=hold_back)
    assert streamer.values[0] == prompt
    assert streamer.ended == 1
    return streamer.tokens


def shown_before(made: GateRule, plain: Raw, hold_back: int) -> int | None:
    """Tokens shown of an answer before its refusal, written down from the docstring; None for one that is not refused."""
    scores = running_scores(made.score, plain.energies[0])
    n = next((place + 1 for place, score in enumerate(scores) if score > made.threshold), None)
    if n is None:
        return None
    return 0 if n <= made.score.lookahead else max(n - 1 - hold_back, 0)


@pytest.mark.parametrize("hold_back", [0, 1, 3, 99])
@pytest.mark.parametrize("draft", ["none", "mostly right", "itself"])
def test_of_a_refused_answer_so_much_less_is_shown_as_is_held_back(uneven: PreTrainedModel, draft: str, hold_back: int) -> None:
    """Also where an assistant's drafts are accepted several at a time, and streamed before the gate has looked at them."""
    way = {} if draft == "none" else ASSISTED[draft](uneven)
    late = 0
    for prompt in prompts(8, 8):
        plain = raw(uneven, [prompt], way)
        refusal = [*WORDS.refusals[refusal_index(0, prompt, 3)], WORDS.ends[0]]
        scores = running_scores(TrailingWindow(2), plain.energies[0])
        for threshold in (max(scores) + 1, max(scores[:-1] or scores) - 1e-3, -1e9):
            made = rule(TrailingWindow(2), threshold)
            tokens, shown = streamed(uneven, made, prompt, hold_back, way), shown_before(made, plain, hold_back)
            if shown is None:
                assert tokens == plain.answers[0]
                continue
            if draft != "none":  # tokens accepted together are looked at together, and none of them was shown before
                shown = next(n for n in range(shown + 1) if tokens[n:] == [*(WORDS.line_break if n else ()), *refusal])
            assert tokens == [*plain.answers[0][:shown], *(WORDS.line_break if shown else ()), *refusal]
            late += shown > 0
            if threshold == -1e9:
                assert tokens == refusal
    assert late == 0 if hold_back == 99 else late > 0


def test_a_request_refused_at_the_prompt_streams_the_refusal_alone(uneven: PreTrainedModel) -> None:
    made = rule(FirstTokens(1), -1e9)
    for way in ({}, ASSISTED["itself"](uneven)):
        for prompt in prompts(8, 3):
            refusal = [*WORDS.refusals[refusal_index(0, prompt, 3)], WORDS.ends[0]]
            assert streamed(uneven, made, prompt, 0, way) == refusal


@pytest.mark.parametrize(("rows", "way"), [(2, {}), (1, {"num_beams": 2}), (1, {"do_sample": True, "num_return_sequences": 2})])
def test_several_sequences_are_not_streamed_at_once(uneven: PreTrainedModel, rows: int, way: dict[str, Any]) -> None:
    given = inputs(prompts(8, rows))
    options = options_of({**way, "streamer": Collected()})
    made = rule(Highest(2), 0)
    with pytest.raises(GateError, match="several sequences at once"):
        trusting(uneven, made).generate(made, *given.values(), options)


@pytest.mark.parametrize("hold_back", [0, 2, 400])
def test_the_text_that_is_streamed_with_tokens_held_back(
    hold_back: int, gate: EnergyGate, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    from gate import tiny

    words: Halves = halves(gate, tiny.model(), tokenizer, TrailingWindow(2), n=16)
    late = 0
    for prompt, answer in zip(words.prompts, words.guarded.answer(words.prompts), strict=True):
        text = "".join(words.guarded.stream(prompt, hold_back=hold_back))
        assert text.strip().endswith(answer.text)
        if not answer.refused or answer.n_tokens < 2 or answer.n_tokens <= hold_back:
            assert text.strip() == answer.text
        else:
            plain = words.guarded.answer([prompt], raw=True)[0].text
            before = text.removesuffix(answer.text).strip()
            assert plain.startswith(before)
            assert before
            late += 1
    assert late > 0 or hold_back == 400
