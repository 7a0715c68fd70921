"""The gate tests' tiny model, and a guarded model whose threshold splits the test prompts in two halves."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from d2unlearn.gate import EnergyGate
from d2unlearn.gate.score import FirstTokens, MaxOf, MaxOverLooks, Score, TrailingWindow
from d2unlearn.generation.guarded import GuardedModel
from gate import tiny
from gate.conftest import at, gate, model, one_thread, tokenizer

__all__ = ["gate", "model", "one_thread", "tokenizer"]

SCORES: dict[str, Score] = {
    "prompt": FirstTokens(1),
    "first-4": FirstTokens(4),
    "window-4": TrailingWindow(4),
    "early-or-window": MaxOf((MaxOverLooks(1, 3), TrailingWindow(4))),
}


class Halves(NamedTuple):
    """A guarded model and prompts of which it refuses half. `scores`: of the unguarded answers."""

    guarded: GuardedModel
    prompts: list[str]
    ids: list[list[int]]
    scores: np.ndarray
    refused: np.ndarray


def halves(
    gate: EnergyGate, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, score: Score, *, n: int = 8, limit: int = 12
) -> Halves:
    """`gate` with another score and the threshold in the widest gap between the middle scores of `n` prompts."""
    from dataclasses import replace

    from d2unlearn.data.template import Template
    from d2unlearn.gate.score import request_scores
    from d2unlearn.gate.traces import collect_traces

    template = Template(tokenizer)
    fitting = [template.question_ids(text) for text in tiny.questions(20, 30)]
    energies = [t.energies for t in collect_traces(model, tokenizer, fitting, max_new_tokens=limit)]
    fitted = score.fit(energies)
    prompts = tiny.questions(21, n)
    ids = [template.question_ids(text) for text in prompts]
    scores = request_scores(fitted, [t.energies for t in collect_traces(model, tokenizer, ids, max_new_tokens=limit)])
    middle = np.sort(scores)[n // 4 : n - n // 4 + 1]
    place = int(np.argmax(np.diff(middle)))
    threshold = float((middle[place] + middle[place + 1]) / 2)
    seen = tuple(np.resize(scores, len(gate.calibration.calibration_scores)).tolist())
    measured = replace(
        gate.calibration, score=fitted, conformal_threshold=threshold, calibration_scores=seen, forget_scores=seen
    )
    changed = replace(gate, calibration=measured)
    guarded = GuardedModel(model, tokenizer, at(changed, threshold))
    return Halves(guarded, prompts, ids, scores, scores > threshold)


@pytest.fixture(params=SCORES)
def split(
    request: pytest.FixtureRequest, gate: EnergyGate, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> Halves:
    return halves(gate, model, tokenizer, SCORES[request.param])


@pytest.fixture
def early(gate: EnergyGate, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Halves:
    return halves(gate, model, tokenizer, SCORES["early-or-window"])
