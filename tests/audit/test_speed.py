"""What a part takes, by hand; and that the threads tried for an audit are given back."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from d2unlearn.audit import speed
from d2unlearn.audit.parts import Cost, Part, Subject
from d2unlearn.audit.speed import Speed, fitting_threads
from d2unlearn.generation.guarded import GuardedModel

from .asking import ROWS


def test_what_is_refused_is_cheap_and_what_should_be_answered_is_not() -> None:
    """3 rows trained, 5 scored, 7 answered."""
    measured, cost = Speed(trained=100.0, scored=10.0, answered=1.0, guarded=0.1), Cost(3, 5, 7)
    raw = Part("raw", [], cost, lambda: [], "other_words")
    guarded = Part("guarded", [], cost, lambda: [], "refused", guarded=True)
    legitimate = Part("legitimate", [], cost, lambda: [], "nothing_else", guarded=True)
    assert [measured.seconds(part) for part in (raw, guarded, legitimate)] == pytest.approx([357.0, 350.7, 357.0])


def test_the_fastest_of_the_threads_tried_is_taken_and_all_are_given_back(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, now = Subject("artifact", GuardedModel(model, tokenizer, None), "weights"), [4]
    tried: list[int] = []

    def seconds(work: object) -> float:
        tried.append(now[0])
        return abs(now[0] - 2)

    monkeypatch.setattr(torch, "get_num_threads", lambda: now[0])
    monkeypatch.setattr(torch, "set_num_threads", lambda n: now.__setitem__(0, n))
    monkeypatch.setattr(speed, "_seconds", seconds)
    with fitting_threads(subject, ROWS) as threads:
        assert (threads, now) == (2, [2])
    assert (sorted(set(tried), reverse=True), now) == ([4, 2, 1], [4])
    tried.clear()
    now[0] = 1
    with fitting_threads(subject, ROWS) as threads:
        assert (threads, tried) == (1, [])
