"""Guarded generation: the same decisions alone, batched, streamed and in transformers' form; what refusals cost and leak."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    GenerationConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from d2unlearn.data.batching import pad_left
from d2unlearn.errors import DataError, GateError
from d2unlearn.gate import EnergyGate
from d2unlearn.gate.score import FirstTokens, TrailingWindow, request_scores
from d2unlearn.gate.traces import collect_traces
from d2unlearn.generation.guarded import GateWarning, GuardedModel
from d2unlearn.schema import Message
from gate import tiny
from gate.conftest import at

from .conftest import SCORES, Halves, halves


@contextmanager
def counted(model: torch.nn.Module) -> Iterator[list[int]]:
    """Collects the width of the ids of every forward pass."""
    widths: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    yield widths
    handle.remove()


def test_half_is_refused_and_the_rest_answered_as_without_a_gate(split: Halves) -> None:
    assert 0 < split.refused.sum() < len(split.refused)
    answers = split.guarded.answer(split.prompts)
    raw = split.guarded.answer(split.prompts, raw=True)
    assert [a.refused for a in answers] == split.refused.tolist()
    for answer, plain, prompt_ids, score in zip(answers, raw, split.ids, split.scores, strict=True):
        assert plain.raw
        assert not answer.raw
        assert (plain.score, plain.threshold, plain.refused) == (None, None, False)
        assert answer.energy == pytest.approx(plain.energy, abs=1e-4)
        if answer.refused:
            assert answer.text == split.guarded.gate.refusal(prompt_ids)  # type: ignore[union-attr]
            assert answer.threshold < answer.score <= score + 1e-4  # type: ignore[operator]
        else:
            assert answer.text == plain.text
            assert answer.score == pytest.approx(score, abs=1e-4)
            assert answer.n_tokens == plain.n_tokens


def test_rows_are_decided_alone(split: Halves) -> None:
    together = split.guarded.answer(split.prompts, batch_size=8)
    for prompt, batched in zip(split.prompts, together, strict=True):
        (alone,) = split.guarded.answer([prompt])
        decision = split.guarded.decide(prompt)
        assert (alone.text, alone.refused, alone.n_tokens) == (batched.text, batched.refused, batched.n_tokens)
        assert (decision.refused, decision.n_tokens) == (batched.refused, batched.n_tokens)
        np.testing.assert_allclose([alone.energy, alone.score], [batched.energy, batched.score], atol=1e-4)
        np.testing.assert_allclose([decision.energy, decision.score], [batched.energy, batched.score], atol=1e-4)


def test_generate_returns_prompt_refusal_end_and_padding(split: Halves, model: LlamaForCausalLM) -> None:
    guarded = split.guarded
    ids, mask = pad_left(split.ids, 0)
    plain = model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False)
    sequences = guarded.generate(ids, mask, max_new_tokens=12, do_sample=False)
    structured = guarded.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=12, do_sample=False, return_dict_in_generate=True, output_scores=True
    )
    assert torch.equal(structured.sequences, sequences)
    assert torch.equal(sequences[:, : ids.shape[1]], ids)
    for row, refused in enumerate(split.refused):
        answer = sequences[row, ids.shape[1] :].tolist()
        if refused:
            wanted = guarded.template.text_ids(guarded.gate.refusal(split.ids[row]))  # type: ignore[union-attr]
            assert answer == [*wanted, 2, *[0] * (len(answer) - len(wanted) - 1)]
        else:
            kept = plain[row, ids.shape[1] :].tolist()
            assert answer[: len(kept)] == kept[: len(answer)]
    raw = guarded.generate(ids, mask, max_new_tokens=12, do_sample=False, raw=True)
    assert torch.equal(raw, plain)


@pytest.mark.parametrize(("score", "forwards"), [(FirstTokens(1), 1), (FirstTokens(4), 4), (TrailingWindow(2), 2)])
def test_what_a_refusal_costs(
    score: FirstTokens, forwards: int, gate: EnergyGate, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    """k forward passes when k positions decide, the first of them the prompt's; none that is not needed."""
    split = halves(gate, model, tokenizer, score)
    strict = GuardedModel(model, tokenizer, at(split.guarded.gate, -1e9))  # type: ignore[arg-type]
    strict.decide(split.prompts[0])  # the first use checks the probes
    ids, mask = pad_left(split.ids, 0)
    with counted(model) as widths:
        sequences = strict.generate(ids, mask, max_new_tokens=12, do_sample=False)
    assert widths == [ids.shape[1], *[1] * (forwards - 1)]
    assert (sequences[:, ids.shape[1]] != 0).all()
    assert [strict.decide(p).n_tokens for p in split.prompts[:2]] == [forwards - 1] * 2
    never = GuardedModel(model, tokenizer, at(split.guarded.gate, 1e9))  # type: ignore[arg-type]
    never.decide(split.prompts[0])
    with counted(model) as guarded_widths:
        never.generate(ids, mask, max_new_tokens=12, do_sample=False)
    with counted(model) as plain_widths:
        model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False)
    assert guarded_widths == plain_widths


def test_knowledge_that_starts_half_way_is_stopped(
    gate: EnergyGate, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    """With a window, some request is refused after the early looks were passed."""
    split = halves(gate, model, tokenizer, TrailingWindow(2), n=24)
    late = [a for a in split.guarded.answer(split.prompts) if a.refused and a.n_tokens >= 2]
    assert late


class Collected(BaseStreamer):
    """Notes what it is handed."""

    def __init__(self) -> None:
        self.values: list[list[int]] = []
        self.ended = 0

    def put(self, value: torch.Tensor) -> None:
        self.values.append(value.reshape(-1).tolist())

    def end(self) -> None:
        self.ended += 1


def test_a_stream_leaks_nothing_of_an_answer_refused_early(split: Halves, model: LlamaForCausalLM) -> None:
    guarded = split.guarded
    held_back = guarded.gate.score.lookahead  # type: ignore[union-attr]
    seen = {"early": 0, "late": 0, "answered": 0}
    for prompt_ids, answer in zip(split.ids, guarded.answer(split.prompts), strict=True):
        streamer = Collected()
        ids = torch.tensor([prompt_ids])
        guarded.generate(ids, torch.ones_like(ids), max_new_tokens=12, do_sample=False, streamer=streamer)
        raw = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)[
            0, ids.shape[1] :
        ].tolist()
        assert streamer.values[0] == prompt_ids
        assert streamer.ended == 1
        tokens = [token for value in streamer.values[1:] for token in value]
        refusal = guarded.template.text_ids(guarded.gate.refusal(prompt_ids))  # type: ignore[union-attr]
        if not answer.refused:
            assert tokens == raw
            seen["answered"] += 1
        elif answer.n_tokens < held_back:
            assert tokens == [*refusal, 2]
            seen["early"] += 1
        else:
            assert tokens[-len(refusal) - 1 :] == [*refusal, 2]
            assert tokens[: answer.n_tokens] == raw[: answer.n_tokens]
            assert len(tokens) == answer.n_tokens + 1 + len(refusal) + 1  # a line break between them
            seen["late"] += 1
    assert seen["answered"] > 0
    if isinstance(guarded.gate.score, FirstTokens):  # type: ignore[union-attr]
        assert seen["late"] == 0
    assert seen["early"] + seen["late"] == split.refused.sum()


def test_stream_yields_the_text_of_the_answer(early: Halves) -> None:
    for prompt, answer in zip(early.prompts, early.guarded.answer(early.prompts), strict=True):
        text = "".join(early.guarded.stream(prompt))
        if answer.refused and answer.n_tokens >= early.guarded.gate.score.lookahead:  # type: ignore[union-attr]
            assert text.endswith(answer.text)
        else:
            assert text.strip() == answer.text


def test_a_stream_raises_what_generation_raises_and_may_be_left(early: Halves) -> None:
    assert early.guarded.gate is not None
    wrong = GuardedModel(tiny.model(seed=5), early.guarded.tokenizer, early.guarded.gate)
    with pytest.raises(GateError, match="probe prompt"):
        list(wrong.stream(early.prompts[0]))
    prompt = early.prompts[int(np.flatnonzero(~early.refused)[0])]
    pieces = early.guarded.stream(prompt, max_new_tokens=400)
    assert next(pieces)
    pieces.close()  # type: ignore[attr-defined]


def test_sampling_draws_from_the_seed_and_warns_once(early: Halves) -> None:
    guarded = GuardedModel(early.guarded.model, early.guarded.tokenizer, early.guarded.gate)
    with pytest.warns(GateWarning, match="stated for greedy decoding"):
        first = guarded.answer(early.prompts, do_sample=True, temperature=1.5, seed=7)
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = guarded.answer(early.prompts, do_sample=True, temperature=1.5, seed=7)
        other = guarded.answer(early.prompts, do_sample=True, temperature=1.5, seed=8)
    assert torch.equal(torch.get_rng_state(), state)
    assert first == again
    assert [a.text for a in first] != [a.text for a in other]
    greedy = guarded.answer(early.prompts)
    np.testing.assert_allclose([a.energy for a in first], [a.energy for a in greedy], atol=1e-4)


def test_returned_sequences_are_decided_one_by_one(early: Halves) -> None:
    ids, mask = pad_left(early.ids[:3], 0)
    torch.manual_seed(3)
    with pytest.warns(GateWarning):
        sequences = early.guarded.generate(ids, mask, max_new_tokens=10, do_sample=True, num_return_sequences=4)
    torch.manual_seed(3)
    raw = early.guarded.generate(ids, mask, max_new_tokens=10, do_sample=True, num_return_sequences=4, raw=True)
    assert len(sequences) == 12
    kinds = []
    for row in range(12):
        refusal = early.guarded.template.text_ids(early.guarded.gate.refusal(early.ids[row // 4]))  # type: ignore[union-attr]
        answer = sequences[row, ids.shape[1] :].tolist()
        if answer[: len(refusal) + 1] == [*refusal, 2]:
            kinds.append("refused")
        else:
            # rows that go on draw the same tokens as they would without the gate
            assert answer == raw[row, ids.shape[1] :].tolist()[: len(answer)]
            kinds.append("answered")
    assert set(kinds) == {"refused", "answered"}


class Push(LogitsProcessor):
    """Pushes one token far up."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        scores[:, 30] += 1e4
        return scores


def test_what_changes_tokens_does_not_change_the_prompt_s_energy(
    gate: EnergyGate, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Penalties, bans and a caller's own logits processor: the gate decides by the model's own logits."""
    split = halves(gate, model, tokenizer, SCORES["prompt"])
    ids, mask = pad_left(split.ids, 0)
    for options in (
        {"repetition_penalty": 5.0},
        {"suppress_tokens": [5, 6, 7]},
        {"logits_processor": LogitsProcessorList([Push()])},
        {"min_new_tokens": 6},
        {"generation_config": GenerationConfig(max_new_tokens=6, repetition_penalty=5.0, eos_token_id=2, pad_token_id=0)},
        {"use_cache": False},
    ):
        given = options if "generation_config" in options else {"max_new_tokens": 6, "do_sample": False, **options}
        sequences = split.guarded.generate(ids, mask, **given)
        for row, refused in enumerate(split.refused):
            refusal = [*split.guarded.template.text_ids(split.guarded.gate.refusal(split.ids[row])), 2]  # type: ignore[union-attr]
            assert (sequences[row, ids.shape[1] :].tolist()[: len(refusal)] == refusal) == refused
    assert "disable_compile" not in model.generation_config.to_diff_dict()


def test_beams_are_allowed_raw(early: Halves) -> None:
    ids = torch.tensor(early.ids[:1])
    options = {"max_new_tokens": 4, "do_sample": False, "num_beams": 3}
    raw = early.guarded.generate(ids, torch.ones_like(ids), raw=True, **options)
    assert torch.equal(raw, early.guarded.model.generate(ids, attention_mask=torch.ones_like(ids), **options))


class StopAfter(StoppingCriteria):
    """Stops the first row after some tokens, the others never."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, input_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        done = torch.zeros(len(input_ids), dtype=torch.bool)
        done[0] = input_ids.shape[1] >= self.length
        return done


def test_a_row_that_the_caller_stops_is_judged_by_its_own_tokens(
    gate: EnergyGate, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Its last look is at its end; what is fed for it afterwards does not count."""
    split = halves(gate, model, tokenizer, FirstTokens(6))
    ids, mask = pad_left(split.ids[:2], 0)
    first, second = split.guarded.generator.generate(
        at(split.guarded.gate, 1e9).rule,  # type: ignore[arg-type]
        ids,
        mask,
        {"max_new_tokens": 9, "do_sample": False, "stopping_criteria": StoppingCriteriaList([StopAfter(ids.shape[1] + 3)])},
    ).decisions
    traces = collect_traces(model, tokenizer, split.ids[:2], max_new_tokens=9)
    assert (first.n_tokens, second.n_tokens) == (3, len(traces[1].energies))
    assert len(traces[0].energies) > 3
    wanted = request_scores(FirstTokens(6), [traces[0].energies[:3], traces[1].energies])
    np.testing.assert_allclose([first.score, second.score], wanted, atol=1e-4)  # type: ignore[arg-type]


def test_without_end_or_padding_tokens(gate: EnergyGate) -> None:
    """No end token anywhere: refused rows still stop, and come back as prompt, refusal and filler."""
    model = tiny.model(eos=None, pad=None)
    tokenizer = tiny.tokenizer({"bos_token": "<bos>"})
    fresh = EnergyGate.calibrate(
        model,
        tokenizer,
        tiny.examples(1, 60),
        max_false_refusal=0.2,
        max_new_tokens=6,
        refusal_texts=["refused"],
        score="prompt",
    )
    split = halves(fresh, model, tokenizer, FirstTokens(1), limit=6)
    answers = split.guarded.answer(split.prompts, batch_size=8)
    assert [a.refused for a in answers] == split.refused.tolist()
    assert all(a.n_tokens == (0 if a.refused else 6) for a in answers)
    row = int(np.flatnonzero(split.refused)[0])
    ids = torch.tensor([split.ids[row]])
    with counted(model) as widths:
        sequences = split.guarded.generate(ids, torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    assert widths == [ids.shape[1]]
    assert sequences[0, ids.shape[1] :].tolist() == split.guarded.template.text_ids("refused")


def test_an_end_token_that_is_also_the_padding(early: Halves, model: LlamaForCausalLM) -> None:
    ids, mask = pad_left(early.ids, 2)
    sequences = early.guarded.generate(ids, mask, max_new_tokens=12, do_sample=False, pad_token_id=2)
    for row, refused in enumerate(early.refused):
        refusal = [*early.guarded.template.text_ids(early.guarded.gate.refusal(early.ids[row])), 2]  # type: ignore[union-attr]
        assert (sequences[row, ids.shape[1] :].tolist()[: len(refusal)] == refusal) == refused


def test_special_tokens_typed_in_a_prompt_stay_text(early: Halves) -> None:
    ids = early.guarded.prompt_ids("w1 <eos> <pad> w2")
    assert ids.count(2) == 0
    assert ids.count(0) == 0
    assert early.guarded.decide("w1 <eos> w2").energy != early.guarded.decide("w1 w2").energy


def test_a_prompt_that_fills_the_context_is_an_error_and_not_an_answer(early: Halves) -> None:
    room = early.guarded.model.config.max_position_embeddings
    overhead = len(early.guarded.prompt_ids("w1")) - 1
    too_long, fits = (" ".join(["w1"] * (room - overhead - spare)) for spare in (0, 1))
    for ask in (early.guarded.decide, lambda prompt: early.guarded.answer([prompt], raw=True), early.guarded.stream):
        with pytest.raises(DataError, match=f"a prompt of {room} tokens leaves no room in the model's context of {room}"):
            list(ask(too_long))
    assert len(early.guarded.answer([fits], max_new_tokens=1)) == 1


def test_conversations_are_prompts(early: Halves) -> None:
    text = early.prompts[0]
    assert early.guarded.answer([(Message("user", text),)]) == early.guarded.answer([text])
    longer = (Message("system", "w3"), Message("user", "w4"), Message("assistant", "w5"), Message("user", text))
    assert early.guarded.answer([longer])[0].energy != early.guarded.answer([text])[0].energy


def test_from_pretrained_guards_or_says_that_it_cannot(
    tmp_path: Path, gate: EnergyGate, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(GateError, match="d2unlearn calibrate"):
        GuardedModel.from_pretrained(tmp_path, device="cpu")
    raw = GuardedModel.from_pretrained(tmp_path, device="cpu", raw=True, use_gate=True)
    assert raw.gate is None
    assert "RAW" in repr(raw)
    assert raw.answer(["w1 w2"])[0].raw
    with pytest.raises(GateError, match="decides nothing"):
        raw.decide("w1 w2")
    gate.save(tmp_path)
    guarded = GuardedModel.from_pretrained(tmp_path, device="cpu")
    assert guarded.gate is not None
    assert guarded.gate.threshold == gate.threshold
    assert guarded.decide("w1 w2 w3").energy == pytest.approx(raw.answer(["w1 w2 w3"])[0].energy, abs=1e-4)
    assert GuardedModel.from_pretrained(tmp_path, device="cpu", raw=True).gate is None
    both = GuardedModel.from_pretrained(tmp_path, device="cpu", raw=True, use_gate=True)
    assert both.gate == guarded.gate
    assert guarded.fingerprint == both.fingerprint != raw.fingerprint
    with pytest.raises(GateError, match="running in bfloat16"):
        GuardedModel.from_pretrained(tmp_path, dtype=torch.bfloat16, device="cpu").decide("w1 w2")


def test_probes_are_always_asked_also_of_files_that_were_calibrated(
    tmp_path: Path, gate: EnergyGate, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    replace(gate, hash_of_calibrated=True).save(tmp_path)
    guarded = GuardedModel.from_pretrained(tmp_path, device="cpu")
    with counted(guarded.model) as widths:
        guarded.generate(torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.long), max_new_tokens=1, do_sample=False)
    assert widths == [max(len(probe.token_ids) for probe in gate.probes), 3]


def test_changed_weights_and_templates_are_noticed(early: Halves, gate: EnergyGate, tokenizer: PreTrainedTokenizerFast) -> None:
    wrong = GuardedModel(tiny.model(seed=5), tokenizer, gate)
    ids = torch.tensor(early.ids[:1])
    for _ in range(2):  # not only the first time
        with pytest.raises(GateError, match="probe prompt"):
            wrong.generate(ids, torch.ones_like(ids), max_new_tokens=2, do_sample=False)
    other = copy.deepcopy(tokenizer)
    other.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(GateError, match="chat template changed"):
        GuardedModel(early.guarded.model, other, gate)
