"""The gate tests' tiny model, two kinds of requests, and the model behind each guard."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from d2unlearn.generation.guarded import GuardedModel
from d2unlearn.guards import GuardInputs
from d2unlearn.schema import Example, Message
from gate import tiny
from gate.conftest import model, one_thread, tokenizer

__all__ = ["model", "one_thread", "tokenizer"]

ABOUT = range(3)
"""The words that requests to be refused are made of."""


def requests(seed: int, n: int, words: range) -> list[Example]:
    """Questions made of the words of these numbers."""
    rng = np.random.default_rng(seed)
    texts = [" ".join(f"w{i}" for i in rng.choice(list(words), size=rng.integers(3, 9))) for _ in range(n)]
    return [Example(f"{seed}-{i}", (Message("user", text),), "w1 w2", f"rows:{i}") for i, text in enumerate(texts)]


@pytest.fixture(scope="session")
def base(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> GuardedModel:
    return GuardedModel(model, tokenizer, None)


@pytest.fixture(scope="session")
def known() -> GuardInputs:
    """Requests about the first words should be gone."""
    assert len(tiny.WORDS) == 60
    return GuardInputs(
        requests(1, 60, ABOUT), requests(2, 120, range(20, 60)), requests(3, 39, range(20, 60)), max_false_refusal=0.05
    )
