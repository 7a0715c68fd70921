"""The formulas of memory against what autograd keeps, what models and adapters hold, and what processes were seen to need."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from d2unlearn.head import CHUNK_LOGITS
from d2unlearn.models import low_rank_config, with_fresh_adapter
from d2unlearn.observation import Batch, observe
from d2unlearn.quantities import LogSumExp, Nll
from d2unlearn.training import estimate
from d2unlearn.training.estimate import (
    StepShape,
    TrainingSetup,
    activation_bytes,
    alternatives,
    disk_bytes,
    llama_shape,
    peak_memory,
    step_operations,
    training_steps,
    weight_bytes,
)

SIZES = (512, 128, 3, 352, 8, 4)
SHAPE = llama_shape(*SIZES)
ROWS, WIDTH = 8, 64
STEP = StepShape(ROWS, WIDTH, positions=ROWS * 22)
SETUPS = {
    "full": TrainingSetup(),
    "full, autocast": TrainingSetup(mixed=True),
    "full in bf16": TrainingSetup(weight_bytes=2),
    "full, checkpointed": TrainingSetup(checkpointing=True),
    "LoRA": TrainingSetup(lora_rank=4),
    "LoRA, autocast": TrainingSetup(lora_rank=4, mixed=True),
    "LoRA in bf16": TrainingSetup(lora_rank=4, weight_bytes=2),
    "LoRA in bf16, autocast": TrainingSetup(lora_rank=4, weight_bytes=2, mixed=True),
}


def llama(setup: TrainingSetup) -> torch.nn.Module:
    vocabulary, hidden, layers, intermediate, heads, key_heads = SIZES
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        intermediate_size=intermediate,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
    )
    model: torch.nn.Module = LlamaForCausalLM(config).to(torch.bfloat16 if setup.weight_bytes == 2 else torch.float32).train()
    if setup.checkpointing:
        model.activation_checkpointing_enable()
    return with_fresh_adapter(model, low_rank_config(setup.lora_rank)).train() if setup.lora_rank else model


def kept(model: torch.nn.Module, *, mixed: bool) -> int:
    """Bytes of all storages that autograd keeps of one forward, the weights' own left out."""
    ids = torch.arange(ROWS * WIDTH).reshape(ROWS, WIDTH) % (SIZES[0] - 4) + 4
    mask, labels = torch.ones_like(ids), ids.clone()
    mask[0, -2:] = 0
    labels[:, : WIDTH - 22] = -100
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        found = observe(model, {"forget": Batch(ids, mask, labels)}, {"forget": [Nll(), LogSumExp()]})
    assert found["forget"][Nll()].shape == (ROWS * 22,)
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("name", SETUPS)
def test_activations_are_what_autograd_keeps(name: str) -> None:
    setup = SETUPS[name]
    measured = kept(llama(setup), mixed=setup.mixed)
    if setup.checkpointing:  # the layer made anew in the backward is not kept by the forward
        measured += estimate.layer_bytes(SHAPE, STEP, setup)
    assert activation_bytes(SHAPE, STEP, setup) == pytest.approx(measured, rel=0.03)


def test_parameters_are_those_of_the_model_and_its_adapters() -> None:
    model = llama(SETUPS["LoRA"])
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert SHAPE.adapter_parameters(4) == trained
    assert SHAPE.parameters == sum(p.numel() for p in model.parameters()) - trained
    assert (
        weight_bytes(SHAPE, SETUPS["LoRA in bf16"])
        == sum(p.numel() * p.itemsize for p in model.parameters()) - 2 * SHAPE.parameters
    )


def test_a_peak_by_hand() -> None:
    """V 1000, H 8, no layers: 16,000 weights; 10 positions of 1,000 logits, twice in float32; nothing is accumulated."""
    shape = llama_shape(1000, 8, 1, 16, 2, 1)
    bare = replace(shape, layers=1, parameters=16000, linear_parameters=0, linear_widths=0)
    memory = peak_memory(bare, StepShape(2, 8, positions=10, stored=7), TrainingSetup())
    assert (memory.weights, memory.gradients, memory.optimizer) == (64_000, 64_000, 128_000)
    assert (memory.copied_heads, memory.stored) == (32_000, 7)
    assert memory.head_chunk == 10 * 1000 * 4 * 2 + 32_000
    resident = 64_000 + 128_000 + 32_000 + 7
    assert memory.moments["as the backward ends"] == resident + 64_000
    assert memory.moments["as the backward begins"] == resident + memory.activations + memory.head_chunk
    assert memory.moments["in an evaluation"] == resident + 4 * 10 * 1000 * 4
    assert (memory.moment, memory.peak) == ("in an evaluation", resident + 160_000)


def test_sharding_divides_what_is_trained_and_not_what_is_computed() -> None:
    alone, eight = (peak_memory(SHAPE, STEP, TrainingSetup(devices=n, sharded=True)) for n in (1, 8))
    assert [eight.weights * 8, eight.gradients * 8, eight.optimizer * 8] == [alone.weights, alone.gradients, alone.optimizer]
    assert (eight.activations, eight.head_chunk, eight.gathered) == (alone.activations, alone.head_chunk, alone.gathered)


def test_the_head_holds_one_chunk_whatever_the_vocabulary() -> None:
    assert estimate._CHUNK_LOGITS == CHUNK_LOGITS
    large = replace(SHAPE, vocabulary=262_144)
    assert estimate.chunk_logits(large, 10) == 10 * 262_144
    assert estimate.chunk_logits(large, 10_000) == 64 * 262_144 == CHUNK_LOGITS


def test_four_bits_of_a_linear_weight_and_the_rest_as_it_was() -> None:
    setup = TrainingSetup(weight_bytes=2, lora_rank=4, bits=4)
    rest = SHAPE.parameters - SHAPE.linear_parameters
    expected = SHAPE.linear_parameters * (0.5 + 1 / 64 + 4 / 16384) + rest * 2 + SHAPE.adapter_parameters(4) * 4
    assert weight_bytes(SHAPE, setup) == expected


def test_operations_are_six_a_weight_and_token_of_full_training() -> None:
    """The field's 6 N D, where neither attention nor the head's second pass count much."""
    shape = llama_shape(2, 1024, 4, 4096, 8, 8)
    step = StepShape(2, 16, positions=1)
    assert step_operations(shape, step, TrainingSetup()) == pytest.approx(6 * shape.parameters * step.tokens, rel=0.01)
    assert step_operations(shape, step, TrainingSetup(checkpointing=True)) == pytest.approx(
        8 * shape.parameters * step.tokens, rel=0.01
    )


def test_disk_steps_and_what_would_need_less() -> None:
    setup = TrainingSetup()
    assert disk_bytes(SHAPE, setup, saved_bytes=2, stored=5) == 3 * SHAPE.parameters * 12 + SHAPE.parameters * 2 + 5
    assert training_steps(400, 32, 10) == 130
    assert training_steps(1, 32, 50) == 50
    adapted = replace(setup, lora_rank=8, checkpointing=True)
    assert alternatives(adapted) == {"--quantization 4bit --gradient-checkpointing": replace(adapted, bits=4)}
    assert alternatives(setup)["--lora --gradient-checkpointing"] == replace(setup, lora_rank=16, checkpointing=True)


def test_what_processes_were_seen_to_need_is_within_15_percent() -> None:
    """Of some hundred MiB: below, what libraries load once training begins counts."""
    path = Path(__file__).parents[2] / "benchmarks" / "results" / "growth.json"
    kept = {name: entry for name, entry in json.loads(path.read_text()).items() if entry["measured"]["mib"] >= 300}
    assert {"full", "LoRA", "full, checkpointed", "vocabulary 262144"} <= kept.keys()
    assert {
        "LoRA, base in 8 bits",
        "LoRA, base in 4 bits",
        "full, FSDP2 on 2 devices",
        "LoRA, FSDP2 on 2 devices",
    } <= kept.keys()
    assert {name: entry["ratio"] for name, entry in kept.items() if abs(entry["ratio"] - 1) > 0.15} == {}
