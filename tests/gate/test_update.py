"""`calibrate --update`: more rows, the same score, a threshold from all of them; nothing else of the gate changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from d2unlearn.config import CalibrateSettings
from d2unlearn.data.records import read_examples
from d2unlearn.data.template import Template
from d2unlearn.errors import GateError
from d2unlearn.gate import EnergyGate
from d2unlearn.gate.run import run_calibrate
from d2unlearn.gate.score import request_scores
from d2unlearn.gate.traces import collect_traces
from d2unlearn.gate.update import run_update, updated
from d2unlearn.schema import GATE_FILE

from .test_run import artifact, others, retain, settings

__all__ = ["artifact", "others", "retain"]


def test_the_threshold_is_that_of_all_scores(gate: EnergyGate) -> None:
    """Nine and ten scores at 10 %: the 18th of 19; forgotten ones far above raise it to the middle of the gap."""
    bare = replace(gate.calibration, calibration_scores=tuple(map(float, range(9))), forget_scores=(), threshold=8.0)
    made = updated(bare, np.arange(9.0, 19.0), 0.1, None)
    assert (made.threshold, made.conformal_threshold, made.rank) == (17.0, 17.0, 18)
    assert made.calibration_scores == tuple(map(float, range(19)))
    assert made.calibration_false_refusal[:1] == (1 / 19,)
    raised = updated(replace(bare, forget_scores=(30.0, 32.0)), np.arange(9.0, 19.0), 0.1, None)
    assert (raised.threshold, raised.conformal_threshold) == (24.0, 17.0)
    kept = updated(replace(bare, forget_scores=(30.0, 32.0), threshold=20.0), np.arange(9.0, 19.0), 0.1, None)
    assert (kept.threshold, kept.conformal_threshold) == (20.0, 17.0)
    with pytest.raises(GateError, match="not finite"):
        updated(bare, np.array([np.nan]), 0.1, None)


def test_new_rows_are_added_once(
    artifact: Path, retain: Path, others: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    list(run_calibrate(settings(artifact, retain)))
    before = EnergyGate.from_pretrained(artifact)
    given = replace(settings(artifact, others, unseen=True), update=True)
    lines = list(run_update(given))
    after = EnergyGate.from_pretrained(artifact)
    prompts = [Template(tokenizer).prompt_ids(row.prompt) for row in read_examples(others)]
    traces = collect_traces(model, tokenizer, prompts, max_new_tokens=2)
    scores = request_scores(before.score, [trace.energies for trace in traces])
    n = before.n_calibration
    assert after.calibration.calibration_scores[:n] == before.calibration.calibration_scores
    np.testing.assert_allclose(after.calibration.calibration_scores[n:], scores, atol=1e-4)
    assert lines[0].startswith(f"40 new rows of {others} (0 were known)")
    assert lines[1].startswith(f"{int((scores > before.threshold).sum())} of them lie above the threshold that was")
    above = [row.source for row, score in zip(read_examples(others), scores, strict=True) if score > before.threshold]
    assert len(above) == sum(" (score " in line for line in lines)
    assert all(any(f"  {source} (score " in line for line in lines) for source in above[:20])
    assert after.vouched
    assert f"{n + 40} retained calibration prompts" in after.guarantee
    assert replace(after, calibration=before.calibration, vouched=False) == before
    assert list(run_update(given)) == [f"{artifact / GATE_FILE} is done: same inputs, same settings"]
    assert EnergyGate.from_pretrained(artifact) == after


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [({"unseen": False}, "vouch for them with --unseen"), ({"near": "others.jsonl"}, "leave --near out")],
)
def test_what_it_turns_down(changes: dict[str, object], sentence: str, artifact: Path, retain: Path, others: Path) -> None:
    list(run_calibrate(settings(artifact, retain)))
    given: CalibrateSettings = replace(settings(artifact, others, unseen=True), update=True, **changes)  # type: ignore[arg-type]
    content = (artifact / GATE_FILE).read_bytes()
    with pytest.raises(GateError, match=sentence):
        list(run_update(given))
    assert (artifact / GATE_FILE).read_bytes() == content
