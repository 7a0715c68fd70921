"""The gate file: round trip, tampering, whose weights it belongs to, and what calibration turns down."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from d2unlearn.data.holdout import split_validation
from d2unlearn.data.template import Template
from d2unlearn.errors import GateError
from d2unlearn.gate import EnergyGate
from d2unlearn.gate.score import CANDIDATES, request_scores
from d2unlearn.gate.traces import collect_traces
from d2unlearn.loaded_files import bound_hashes
from d2unlearn.models import weights_hash
from d2unlearn.refusals import GATE_REFUSALS
from d2unlearn.schema import GATE_FILE, Example, Message

from . import tiny


@pytest.fixture
def folder(tmp_path: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, gate: EnergyGate) -> Path:
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    gate.save(tmp_path)
    return tmp_path


def test_round_trip(folder: Path, gate: EnergyGate) -> None:
    loaded = EnergyGate.from_pretrained(folder)
    assert loaded == replace(gate, weights_hash=loaded.weights_hash, bound=loaded.bound)
    assert loaded.weights_hash == weights_hash(folder)
    assert loaded.bound == bound_hashes(folder)
    assert loaded.fingerprint != replace(loaded, seed=1).fingerprint


def test_the_leads_of_groups_come_back_from_the_file(folder: Path, gate: EnergyGate) -> None:
    groups = tuple(replace(group, lead=float(place)) for place, group in enumerate(gate.calibration.groups, start=1))
    replace(gate, calibration=replace(gate.calibration, groups=groups)).save(folder)
    loaded = EnergyGate.from_pretrained(folder)
    assert loaded.calibration.groups == groups
    asked = (Message("user", "w1"),)
    talks = (asked, (Message("system", "w2"), *asked), (*asked, Message("assistant", "w3"), *asked))
    assert [loaded.lead_of(talk) for talk in talks] == [1.0, 2.0, 3.0]


def test_the_file_holds_the_summary_on_top(folder: Path, gate: EnergyGate) -> None:
    stored = json.loads((folder / GATE_FILE).read_text())
    summary = gate.summary()
    assert stored["threshold"] == summary.threshold == gate.threshold
    assert stored["guarantee"] == summary.guarantee
    assert tuple(stored["retain_scores"]) == summary.retain_scores
    assert stored["n_calibration"] == 39
    assert summary.false_refusal is not None
    assert summary.false_refusal.n == 21
    assert "at most 20% of requests" in summary.guarantee
    assert "12 tokens" in summary.guarantee


def test_the_threshold_is_the_order_statistic_of_freshly_generated_answers(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = tiny.examples(1, 60)
    gate = EnergyGate.calibrate(model, tokenizer, rows, max_false_refusal=0.2, max_new_tokens=12, seed=3)
    _, calibration = split_validation(rows, seed=3)
    template = Template(tokenizer)
    traces = collect_traces(model, tokenizer, [template.prompt_ids(r.prompt) for r in calibration], max_new_tokens=12)
    scores = np.sort(request_scores(gate.score, [t.energies for t in traces]))
    assert gate.calibration.rank == math.ceil(40 * 0.8)
    assert gate.threshold == pytest.approx(scores[gate.calibration.rank - 1], abs=1e-4)
    assert gate.calibration.miss_rate is None


def test_forget_prompts_only_raise_and_tell_misses(gate: EnergyGate) -> None:
    assert gate.threshold >= gate.calibration.conformal_threshold
    assert gate.calibration.miss_rate is not None
    assert gate.calibration.miss_rate.n == 12  # two of five authors chose the score
    assert gate.calibration.grouped
    lines = list(gate.describe())
    assert [line[2:].split()[0] for line in lines[: len(CANDIDATES)]] == list(CANDIDATES)
    (why,) = (line for line in lines if line.startswith("why this score: "))
    assert why.endswith("(chosen on rows that set no threshold)")
    assert [line[:12] for line in lines if "|" in line] == ["legitimate |", "forgotten  |"]
    assert any(line.startswith("  multi-turn       no guarantee: 0 of 4 needed") for line in lines)
    assert sum(line.startswith("*") for line in lines) == 1


def test_weights_changed_by_one_byte_are_other_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(GateError, match="other weights"):
        EnergyGate.from_pretrained(folder)


def test_the_same_weights_in_other_shards_are_the_same(folder: Path, model: LlamaForCausalLM, gate: EnergyGate) -> None:
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert EnergyGate.from_pretrained(folder).threshold == gate.threshold


def test_a_gate_is_not_saved_beside_other_weights(folder: Path, tmp_path: Path) -> None:
    bound = EnergyGate.from_pretrained(folder)
    other = tmp_path / "other"
    tiny.model(seed=9).save_pretrained(other)
    with pytest.raises(GateError, match="other weights"):
        bound.save(other)
    assert not (other / GATE_FILE).exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: {**v, "format": 99}, "format 99"),
        (lambda v: {k: x for k, x in v.items() if k != "probes"}, "missing or garbled"),
        (lambda v: {**v, "threshold": v["measured"]["conformal_threshold"] - 1}, "lies below"),
        (lambda v: {**v, "score": {"kind": "vibes"}}, "does not know"),
        (lambda v: {**v, "refusal_texts": []}, "refusal texts"),
        (lambda v: {**v, "threshold": v["threshold"] + 1}, "edited by hand"),
        (lambda v: {**v, "vocab_rows": 3}, "edited by hand"),
        (lambda v: {k: x for k, x in v.items() if k != "checksum"}, "checksum does not fit"),
    ],
)
def test_a_damaged_file_is_turned_down(folder: Path, change: object, message: str) -> None:
    path = folder / GATE_FILE
    path.write_text(json.dumps(change(json.loads(path.read_text()))))  # type: ignore[operator]
    with pytest.raises(GateError, match=message) as caught:
        EnergyGate.from_pretrained(folder)
    assert "d2unlearn calibrate" in str(caught.value)


def test_cut_short_or_missing(folder: Path) -> None:
    path = folder / GATE_FILE
    path.write_text(path.read_text()[:200])
    with pytest.raises(GateError, match="not valid JSON"):
        EnergyGate.from_pretrained(folder)
    path.unlink()
    with pytest.raises(GateError, match="d2unlearn calibrate"):
        EnergyGate.from_pretrained(folder)


def test_rows_without_a_prompt_are_turned_down(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    plain = Example("x", (), "some text", "plain.jsonl:7")
    with pytest.raises(GateError, match=r"plain\.jsonl:7.*no prompt"):
        EnergyGate.calibrate(model, tokenizer, [*tiny.examples(1, 60), plain], max_false_refusal=0.2)
    with pytest.raises(GateError, match="a forget row of plain text"):
        EnergyGate.calibrate(model, tokenizer, tiny.examples(1, 60), [plain], max_false_refusal=0.2)


def test_too_few_rows_are_turned_down_before_anything_is_generated(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny.model()
    model.register_forward_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises(GateError, match="39 calibration prompts are too few"):
        EnergyGate.calibrate(model, tokenizer, tiny.examples(1, 60))


@pytest.mark.parametrize(
    "options", [{"score": "vibes"}, {"refusal_texts": []}, {"refusal_texts": "no"}, {"refusal_texts": [" "]}]
)
def test_bad_options(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, options: dict[str, object]) -> None:
    with pytest.raises(GateError, match=r"score 'vibes' is not known|refusal texts should be"):
        EnergyGate.calibrate(model, tokenizer, tiny.examples(1, 60), max_false_refusal=0.2, **options)  # type: ignore[arg-type]


def test_probes_know_the_weights(model: LlamaForCausalLM, gate: EnergyGate) -> None:
    gate.check_probes(model)
    gate.check_probes(copy.deepcopy(model))
    assert gate.probe_tolerance == 0.002
    with pytest.raises(GateError, match=r"not those the gate was calibrated on.*float32"):
        gate.check_probes(tiny.model(seed=4))
    nudged = copy.deepcopy(model)
    with torch.no_grad():
        nudged.lm_head.weight.mul_(1.01)
    with pytest.raises(GateError, match="recalibrate"):
        gate.check_probes(nudged)
    with pytest.raises(GateError, match="running in bfloat16"):
        gate.check_probes(copy.deepcopy(model).bfloat16())
    with pytest.raises(GateError, match="no probe prompts"):
        replace(gate, probes=()).check_probes(model)
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.lm_head.weight.fill_(math.nan)
    with pytest.raises(GateError, match="nan"):
        gate.check_probes(broken)


def test_refusal_texts_are_drawn_by_the_prompt(gate: EnergyGate) -> None:
    natural = replace(gate, refusal_texts=GATE_REFUSALS)
    drawn = [natural.refusal([i, i + 1]) for i in range(200)]
    assert drawn == [natural.refusal([i, i + 1]) for i in range(200)]
    assert set(drawn) == set(GATE_REFUSALS)
    assert [replace(natural, seed=1).refusal([i, i + 1]) for i in range(200)] != drawn


def test_a_model_left_in_training_mode_is_calibrated_without_dropout(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny.model()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.9
    quiet = EnergyGate.calibrate(model, tokenizer, tiny.examples(1, 20), max_false_refusal=0.2, max_new_tokens=2)
    loud = EnergyGate.calibrate(model.train(), tokenizer, tiny.examples(1, 20), max_false_refusal=0.2, max_new_tokens=2)
    assert loud.threshold == quiet.threshold
    assert loud.probes == quiet.probes
