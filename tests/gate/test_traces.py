"""Energies read while generating: those of the model's own logits, whatever the batch, the padding or the penalties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from d2unlearn import free_energy
from d2unlearn.gate.recorder import EnergyRecorder
from d2unlearn.gate.traces import collect_traces

from . import tiny


@pytest.fixture(scope="module")
def prompts(tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    return [tokenizer(text).input_ids for text in tiny.questions(3, 9)]


def test_a_trace_is_what_a_full_forward_over_prompt_and_answer_gives(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[list[int]]
) -> None:
    for prompt, trace in zip(prompts, collect_traces(model, tokenizer, prompts, max_new_tokens=7, batch_size=4), strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *trace.token_ids]])).logits[0, len(prompt) - 1 : -1]
        assert trace.token_ids == tuple(logits.argmax(-1).tolist())
        np.testing.assert_allclose(trace.energies, free_energy(logits).tolist(), atol=1e-4)
        assert trace.prompt_energy == trace.energies[0]


def test_batching_and_padding_change_nothing(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[list[int]]
) -> None:
    alone = collect_traces(model, tokenizer, prompts, max_new_tokens=7, batch_size=1)
    together = collect_traces(model, tokenizer, prompts, max_new_tokens=7, batch_size=9)
    assert [t.token_ids for t in alone] == [t.token_ids for t in together]
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_allclose(a.energies, b.energies, atol=1e-4)


def test_a_trace_ends_with_the_end_token(tokenizer: PreTrainedTokenizerFast, prompts: list[list[int]]) -> None:
    """An end token that the model writes on its own: the fourth one of the first answer."""
    model = tiny.model()
    free = collect_traces(tiny.model(eos=175), tokenizer, prompts, max_new_tokens=8, batch_size=9)
    assert all(len(trace.token_ids) == 8 for trace in free)
    end = free[0].token_ids[3]
    model.generation_config.eos_token_id = end
    for before, after in zip(free, collect_traces(model, tokenizer, prompts, max_new_tokens=8, batch_size=9), strict=True):
        length = before.token_ids.index(end) + 1 if end in before.token_ids else 8
        assert after.token_ids == before.token_ids[:length]
        np.testing.assert_allclose(after.energies, before.energies[:length], atol=1e-4)


def test_temperature_and_vocabulary_rows(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[list[int]]
) -> None:
    (trace,) = collect_traces(model, tokenizer, prompts[:1], max_new_tokens=1, temperature=2.0, vocab_rows=100)
    with torch.no_grad():
        logits = model(torch.tensor(prompts[:1])).logits[0, -1, :100].double()
    assert trace.prompt_energy == pytest.approx(-2 * float(torch.logsumexp(logits / 2, -1)), abs=1e-4)


def test_the_recorder_reads_logits_before_penalties_and_lets_go_afterwards(
    model: LlamaForCausalLM, prompts: list[list[int]]
) -> None:
    ids = torch.tensor(prompts[:1])
    with EnergyRecorder(model) as plain:
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False)
    with EnergyRecorder(model) as penalised:
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=1,
            do_sample=False,
            repetition_penalty=3.0,
            suppress_tokens=[5],
        )
    model(torch.tensor([[9, 9, 9]]))
    energies = plain.take()
    assert torch.equal(energies, penalised.take())
    assert energies.dtype == torch.float32
