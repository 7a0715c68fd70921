"""The records of an evaluation: what stands where, with a gate and without, and what there is none of."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest

from d2unlearn.config import BenchmarkSettings, EvaluateSettings
from d2unlearn.evaluation.records import evaluation_record, guarded_scores, raw_scores, scored_example
from d2unlearn.generation.guarded import Answer
from d2unlearn.schema import EvaluatedSet, Example, Message, MetricResult, ScoredExample

EXAMPLE = Example("row-1", (Message("system", "s"), Message("user", "q")), "a", "rows.jsonl:1")
REFUSED = Answer("no", True, -2.0, 0.9, 0.5, 3)


class Gate(NamedTuple):
    """A gate as an evaluation reports it."""

    score_name: str = "prompt_energy"
    threshold: float = 0.5
    max_false_refusal: float | None = 0.01


def test_an_example_has_its_answers_and_what_the_gate_said() -> None:
    scores = {"leak_rate": 1.0}
    behind = scored_example(EXAMPLE, scores, raw_answer="a", guarded=REFUSED, prompt_energy=-2.0, answer_energy=-3.0)
    assert behind == ScoredExample("row-1", "q", "a", "a", "no", True, 0.9, -2.0, -3.0, scores)
    alone = scored_example(EXAMPLE, scores, raw_answer="a", guarded=None, prompt_energy=-2.0, answer_energy=-3.0)
    assert alone == ScoredExample("row-1", "q", "a", "a", None, None, None, -2.0, -3.0, scores)


def test_an_answer_leaks_from_half_of_the_truth_on_and_none_has_no_score() -> None:
    assert raw_scores("a b", 0.5) == {"rouge_l_recall": 0.5, "leak_rate": 1.0, "token_entropy": pytest.approx(1.0)}
    assert guarded_scores(REFUSED, 0.25) == {
        "guarded_rouge_l_recall": 0.25,
        "guarded_leak_rate": 0.0,
        "guarded_refusal_rate": 1.0,
    }
    assert all(math.isnan(value) for value in (*raw_scores(None, math.nan).values(), *guarded_scores(None, math.nan).values()))


def test_the_record_names_model_gate_and_settings() -> None:
    sets = [EvaluatedSet("forget", "forget", (), ())]
    separation = [MetricResult("auroc_x", 0.9, 0.8, 1.0, 4, 0, "higher")]
    record = evaluation_record(EvaluateSettings("models/m", "f", "r", "o"), Gate(), sets, separation)
    assert (record.model, record.label, record.benchmark, record.convention) == ("models/m", "m", "", "d2unlearn")
    assert (record.score_name, record.threshold, record.max_false_refusal) == ("prompt_energy", 0.5, 0.01)
    assert (record.sets, record.separation) == (tuple(sets), tuple(separation))
    assert (record.settings["forget"], record.settings["guarded"]) == ("f", True)
    raw = evaluation_record(BenchmarkSettings("models/m", "tofu", "o", label="mine"), None, sets)
    assert (raw.label, raw.score_name, raw.threshold, raw.separation) == ("mine", None, None, ())
    assert raw.settings["guarded"] is False
