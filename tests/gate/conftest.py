"""One thread, and one calibrated gate for the whole session."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from d2unlearn.gate import EnergyGate

from . import tiny


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny.tokenizer()


@pytest.fixture(scope="session")
def model() -> LlamaForCausalLM:
    return tiny.model()


@pytest.fixture(scope="session")
def gate(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> EnergyGate:
    """Calibrated at 20%, on prompts that are like those of the tests."""
    return EnergyGate.calibrate(
        model,
        tokenizer,
        tiny.examples(1, 60),
        tiny.examples(2, 20, group_size=4),
        max_false_refusal=0.2,
        max_new_tokens=12,
        refusal_texts=["sorry", "refused"],
    )


def at(gate: EnergyGate, threshold: float, **changes: object) -> EnergyGate:
    """The gate with another threshold."""
    return replace(gate, calibration=replace(gate.calibration, threshold=threshold), **changes)
