"""What a training run needs, as formulas: parameters, memory by part at its peak, disk, and the arithmetic of a step.

No model and no device is looked at. The saved activations are counted tensor by tensor, as autograd keeps them for a decoder of
transformers (RMSNorm, rotary positions, scaled dot-product attention, gated MLP); n tokens in a batch of padded width T, with
residual width H, query width A, key width K, MLP width I, vocabulary V:

    full, float32                   n (4 H  + 2 H + A + 3 A + 4 I) 4 bytes a layer: norms, linear inputs, attention, MLP
    adapters leave the norms'       normalised states away (2 H), and keep 7 r; bf16 keeps a copy of a linear layer's input
                                    for each of its readers, in 2 bytes; adapters of 16-bit weights keep it in 4
    checkpointed                    n H 4 bytes a layer, and one layer whole

`tests/training/test_estimate.py` holds them to what autograd keeps; `benchmarks/results/memory_peaks.json` is what processes
were seen to need beside them (docs/large_models.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

_CHUNK_LOGITS = 2**24
"""Logits that the head holds at once (`d2unlearn.head._CHUNK_LOGITS`)."""
FLOAT = 4
HALF = 2
ADAM = 2
"""Numbers that AdamW keeps of each trained parameter, in that parameter's dtype."""
NF4_BYTES = 0.5 + 1 / 64 + FLOAT / (64 * 256)
"""Of a weight in 4 bits: codes, and the blocks' scales in 8 bits with scales of their own (QLoRA's double quantisation)."""
INT8_BYTES = 1.0
KEPT_CHECKPOINTS = 2
EVALUATION_LOGITS = 4
"""Buffers of a chunk's logits that an evaluation holds: logits, the original's, and log softmax of both."""


@dataclass(frozen=True)
class ModelShape:
    """Of a decoder what decides memory and time.

    query, key: width of all query heads and of all key heads together; gated: the MLP is; linear_parameters: weights of the
    linear layers without the head; linear_widths: their inputs and outputs, summed.
    """

    vocabulary: int
    hidden: int
    layers: int
    intermediate: int
    heads: int
    query: int
    key: int
    tied: bool
    parameters: int
    linear_parameters: int
    linear_widths: int
    gated: bool = True

    @property
    def head_parameters(self) -> int:
        """Weights of the LM head, [V, H]."""
        return self.vocabulary * self.hidden

    @property
    def layer_parameters(self) -> float:
        """Of one layer: all but embedding and head, spread evenly."""
        ends = self.head_parameters * (1 if self.tied else 2)
        return (self.parameters - ends) / self.layers

    def adapter_parameters(self, rank: int) -> int:
        """Of low-rank adapters at all linear layers but the head."""
        return rank * self.linear_widths


def llama_shape(
    vocabulary: int, hidden: int, layers: int, intermediate: int, heads: int, kv_heads: int, *, tied: bool = False
) -> ModelShape:
    """The shape of a Llama of these sizes, whose heads share the hidden width."""
    key = hidden // heads * kv_heads
    linear = layers * (2 * hidden * hidden + 2 * hidden * key + 3 * hidden * intermediate)
    widths = layers * (2 * (hidden + hidden) + 2 * (hidden + key) + 3 * (hidden + intermediate))
    parameters = vocabulary * hidden * (1 if tied else 2) + linear + (2 * layers + 1) * hidden
    return ModelShape(vocabulary, hidden, layers, intermediate, heads, hidden, key, tied, parameters, linear, widths)


@dataclass(frozen=True)
class StepShape:
    """One micro-batch on one device, and what is kept of the data.

    rows: forget and retained ones together; width: tokens of the longest; positions: that predict an answer's tokens;
    stored: bytes of the reference's values and of the states that evaluations compare with; copied_heads: copies of the LM
    head that stay in memory.
    """

    rows: int
    width: int
    positions: int
    accumulation: int = 1
    stored: int = 0
    copied_heads: int = 1

    @property
    def tokens(self) -> int:
        """With padding."""
        return self.rows * self.width


@dataclass(frozen=True)
class TrainingSetup:
    """How it is trained. weight_bytes: of a weight in memory; lora_rank: 0 trains all; bits: 4 or 8 of a quantised base.

    mixed: bf16 autocast; sharded: FSDP2 spreads weights, gradients and optimizer over the devices.
    """

    weight_bytes: int = FLOAT
    lora_rank: int = 0
    bits: int | None = None
    mixed: bool = False
    checkpointing: bool = False
    devices: int = 1
    sharded: bool = False

    @property
    def compute_bytes(self) -> int:
        """Of a number in a matrix product."""
        return HALF if self.mixed else self.weight_bytes


class PeakMemory(NamedTuple):
    """Bytes on one device: what is always there, and what comes on top of it at each of the moments that may be the peak."""

    weights: float
    optimizer: float
    copied_heads: float
    stored: float
    gradients: float
    activations: float
    head_chunk: float
    gathered: float
    moments: dict[str, float]

    @property
    def peak(self) -> float:
        """Of all moments the largest."""
        return max(self.moments.values())

    @property
    def moment(self) -> str:
        """Which that is."""
        return max(self.moments, key=lambda name: self.moments[name])


def peak_memory(shape: ModelShape, step: StepShape, setup: TrainingSetup) -> PeakMemory:
    """What one device holds, by part, from the second step on."""
    parts = setup.devices if setup.sharded else 1
    weights = weight_bytes(shape, setup) / parts
    trained = trained_bytes(shape, setup) / parts
    optimizer, gathered = ADAM * trained, gathered_bytes(shape, setup) if setup.sharded else 0.0
    copied = step.copied_heads * shape.head_parameters * setup.weight_bytes
    activations = activation_bytes(shape, step, setup)
    head_gradient = 0 if setup.lora_rank else shape.head_parameters * FLOAT
    chunk = chunk_logits(shape, step.positions) * (2 * FLOAT if setup.compute_bytes == FLOAT else 2 * FLOAT + HALF)
    resident = weights + optimizer + copied + step.stored
    held = trained if step.accumulation > 1 else 0.0
    moments = {
        "as the backward begins": resident
        + held
        + activations
        + gathered
        + head_gradient
        + max(chunk, layer_transients(shape, step, setup)),
        "as the backward ends": resident + trained + (head_gradient if shape.tied else 0) + gathered,
        "in an evaluation": resident + gathered + EVALUATION_LOGITS * FLOAT * chunk_logits(shape, step.positions),
    }
    return PeakMemory(weights, optimizer, copied, step.stored, trained, activations, chunk + head_gradient, gathered, moments)


def weight_bytes(shape: ModelShape, setup: TrainingSetup) -> float:
    """Of the whole model, its adapters (always float32) among it."""
    adapters = shape.adapter_parameters(setup.lora_rank) * FLOAT
    if setup.bits is None:
        return shape.parameters * setup.weight_bytes + adapters
    rest = (shape.parameters - shape.linear_parameters) * setup.weight_bytes
    return shape.linear_parameters * (NF4_BYTES if setup.bits == 4 else INT8_BYTES) + rest + adapters


def trained_parameters(shape: ModelShape, setup: TrainingSetup) -> int:
    """How many are trained."""
    return shape.adapter_parameters(setup.lora_rank) if setup.lora_rank else shape.parameters


def trained_bytes(shape: ModelShape, setup: TrainingSetup) -> float:
    """Of one number for each trained parameter, as gradients and each of AdamW's two are."""
    return trained_parameters(shape, setup) * (FLOAT if setup.lora_rank else setup.weight_bytes)


def gathered_bytes(shape: ModelShape, setup: TrainingSetup) -> float:
    """What FSDP2 has whole on each device: embedding, head and the last norm, and two layers with the gradient of one."""
    ends = shape.head_parameters * (1 if shape.tied else 2) * setup.weight_bytes
    layer = shape.layer_parameters * setup.weight_bytes
    return ends + layer * (2 if setup.lora_rank else 3)


def activation_bytes(shape: ModelShape, step: StepShape, setup: TrainingSetup) -> float:
    """What autograd keeps for the backward, the bf16 copies of weights among it."""
    layer = layer_bytes(shape, step, setup)
    ends = (
        step.tokens * shape.hidden * FLOAT * (1 if setup.lora_rank else 2) + step.positions * shape.hidden * setup.compute_bytes
    )
    casts = cast_bytes(shape, setup)
    if not setup.checkpointing:
        return shape.layers * layer + ends + casts
    return shape.layers * step.tokens * shape.hidden * setup.weight_bytes + layer + ends + casts / shape.layers


def cast_bytes(shape: ModelShape, setup: TrainingSetup) -> float:
    """Copies in bf16 that autocast makes of float32 weights; quantised ones are not cast."""
    if not setup.mixed or setup.weight_bytes == HALF:
        return 0.0
    return HALF * (shape.head_parameters + (0 if setup.bits else shape.linear_parameters))


def layer_bytes(shape: ModelShape, step: StepShape, setup: TrainingSetup) -> float:
    """What autograd keeps of one layer."""
    hidden, query, mlp = shape.hidden, shape.query, (4 if shape.gated else 2) * shape.intermediate
    size, rank = setup.compute_bytes, setup.lora_rank
    readers = 5 * hidden + query if setup.mixed else 2 * hidden + query
    norms = 2 * hidden * FLOAT + (0 if rank else 2 * hidden * (FLOAT if setup.mixed else setup.weight_bytes))
    attention = (3 * query + step.width) * size + shape.heads * FLOAT
    inputs = readers * size
    if rank and setup.weight_bytes == HALF and not setup.mixed:  # the adapters read their inputs in float32
        inputs = (5 * hidden + query + shape.intermediate) * FLOAT
        mlp -= shape.intermediate
        attention += query * size
    elif rank and setup.mixed:
        attention += query * size
    widened = mlp * (FLOAT if setup.mixed and setup.bits == 4 and setup.weight_bytes == FLOAT else size)
    adapters = rank * 7 * (HALF if setup.mixed else FLOAT)
    return step.tokens * (norms + inputs + attention + widened + adapters + 2 * FLOAT)


def layer_transients(shape: ModelShape, step: StepShape, setup: TrainingSetup) -> float:
    """Gradients that the backward of one MLP holds at once beside what was kept, or a dequantised weight."""
    dequantised = shape.hidden * shape.intermediate * setup.weight_bytes if setup.bits else 0
    return step.tokens * (3 * shape.intermediate + 2 * shape.hidden) * setup.compute_bytes + dequantised


def chunk_logits(shape: ModelShape, positions: int) -> int:
    """Logits of one chunk."""
    return min(positions, max(1, _CHUNK_LOGITS // shape.vocabulary)) * shape.vocabulary


def checkpoint_bytes(shape: ModelShape, setup: TrainingSetup) -> float:
    """A checkpoint on disk: what is trained, and AdamW's two numbers of each."""
    return trained_bytes(shape, setup) * (1 + ADAM)


def disk_bytes(shape: ModelShape, setup: TrainingSetup, *, saved_bytes: int, stored: int) -> float:
    """At the largest: the checkpoints that stay and the one being written, the artifact, and the reference's values."""
    adapters = shape.adapter_parameters(setup.lora_rank) * FLOAT
    artifact = adapters if setup.bits else shape.parameters * saved_bytes + adapters
    return (KEPT_CHECKPOINTS + 1) * checkpoint_bytes(shape, setup) + artifact + stored


def step_operations(shape: ModelShape, step: StepShape, setup: TrainingSetup) -> float:
    """Floating-point operations of one micro-batch, forward and backward.

    A product with weights costs 2 a weight and token forward, 2 for the gradient of its input and 2 for that of the weights
    (none of frozen ones). Logits are made twice; checkpointed layers run forward twice. Attention: 4 T A a token and layer.
    """
    passes = 2 if setup.lora_rank else 3
    again = 1 if setup.checkpointing else 0
    attention = 2 * shape.layers * step.width * shape.query
    body = (shape.linear_parameters + shape.adapter_parameters(setup.lora_rank)) * step.tokens
    head = shape.head_parameters * step.positions
    return 2.0 * (body * (passes + again) + attention * step.tokens * (3 + again) + head * (passes + 1))


def alternatives(setup: TrainingSetup) -> dict[str, TrainingSetup]:
    """Setups that need less, by the options that make them; those that are set already are left out."""
    rank, lora = setup.lora_rank or 16, "" if setup.lora_rank else "--lora "
    found = {
        "--gradient-checkpointing": replace(setup, checkpointing=True),
        "--lora": replace(setup, lora_rank=rank),
        f"{lora}--gradient-checkpointing": replace(setup, lora_rank=rank, checkpointing=True),
        f"{lora}--quantization 4bit --gradient-checkpointing": replace(setup, lora_rank=rank, bits=4, checkpointing=True),
    }
    return {name: other for name, other in found.items() if other != setup}


def training_steps(forget_rows: int, pairs: int, epochs: float) -> int:
    """Updates. pairs: of an update, on all devices together."""
    return math.ceil(epochs * math.ceil(forget_rows / pairs))
