"""From hidden states and the LM head to the quantities per answer position, in chunks, never holding the [N, V] logits.

    z = transform(h W^T + b)        for a chunk of n positions; then e.g. nll = logsumexp(z) - z_y

Forward keeps the N numbers asked for and nothing of the logits; backward computes each chunk's logits again. `Nll` and
`LogSumExp` have the closed-form gradient  dz = (g_nll + g_lse) softmax(z) - g_nll onehot(y);  every other quantity is
differentiated by autograd on its chunk. A frozen head (LoRA) gets no weight gradient and pays for none.

Logits are the head's own matrix product in the model's dtype, raised to float32 before anything is summed: so an energy
computed here is the energy that generation sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from d2unlearn.energy import at_least_float32
from d2unlearn.errors import ModelError
from d2unlearn.quantities import Chunk, LogSumExp, Nll, Quantity

CHUNK_LOGITS = 2**24
"""Logits held at once: 64 MiB in float32."""


@dataclass(frozen=True)
class LogitTransform:
    """What a model does to `h W^T + b` before it calls the result logits: a factor, then a soft cap (Gemma 2)."""

    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, raw: Tensor) -> Tensor:
        """raw [n, V] -> logits [n, V], in float32 at least."""
        logits = at_least_float32(raw)
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    def backward_(self, grad: Tensor, logits: Tensor) -> Tensor:
        """Gradient with respect to `raw` from that with respect to `logits`; overwrites `grad`."""
        if self.softcap is not None:
            grad.mul_(1 - (logits / self.softcap) ** 2)
        return grad if self.scale == 1.0 else grad.mul_(self.scale)


@dataclass(frozen=True)
class Head:
    """The last linear layer of a language model. weight: [V, H]; bias: [V] or None.

    `vocab_rows` leaves out the rows from that index on: padding that the tokenizer never produces.
    """

    weight: Tensor
    bias: Tensor | None = None
    transform: LogitTransform = LogitTransform()
    vocab_rows: int | None = None

    def rows(self) -> tuple[Tensor, Tensor | None]:
        """Weight [V', H] and bias [V'] with the left-out rows gone (views, no copy)."""
        if self.vocab_rows is None:
            return self.weight, self.bias
        return self.weight[: self.vocab_rows], None if self.bias is None else self.bias[: self.vocab_rows]


def head_of(model: nn.Module, *, vocab_rows: int | None = None) -> Head:
    """The LM head of a Hugging Face causal model. Raises `ModelError` when it is not one plain linear layer."""
    linear = model.get_output_embeddings()  # type: ignore[operator]
    if not isinstance(linear, nn.Linear):
        raise ModelError(
            f"the LM head of {type(model).__name__} is {type(linear).__name__}, not a plain linear layer; "
            "leave lm_head out of adapters and quantisation"
        )
    config = model.config.get_text_config()  # type: ignore[union-attr, operator]
    return Head(linear.weight, linear.bias, logit_transform(config), vocab_rows)


def logit_transform(config: Any) -> LogitTransform:
    """The factor and soft cap that a model's configuration asks for.

    Read from the fields that transformers' models use: `logit_scale` (Cohere), `logits_scaling` (Granite divides by it,
    HyperCLOVA X multiplies), `lm_head_multiplier` (Falcon H1), `output_multiplier`, `final_logit_softcapping` (Gemma).
    A model that does something else is caught by `observation.check_head`.
    """
    scale = 1.0
    for name in ("logit_scale", "lm_head_multiplier", "output_multiplier"):
        scale *= getattr(config, name, None) or 1.0
    scaling = getattr(config, "logits_scaling", None) or 1.0
    scale = scale * scaling if "hyperclovax" in config.model_type else scale / scaling
    return LogitTransform(scale, getattr(config, "final_logit_softcapping", None))


def head_values(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    quantities: Sequence[Quantity],
    *,
    reference_hidden: Tensor | None = None,
    reference_head: Head | None = None,
    chunk_logits: int = CHUNK_LOGITS,
) -> dict[Quantity, Tensor]:
    """Each quantity at each position, with gradients to `hidden` and to the head's weight and bias.

    hidden: [N, H]; targets: [N] int64, below V. Returns {quantity: [N]} in float32 (float64 for float64 inputs); N may be
    zero. `reference_hidden` [N, H] and `reference_head` serve quantities that read the reference's logits.
    Peak memory: about three buffers of `chunk_logits` numbers, whatever N is.
    """
    if not quantities:
        return {}
    weight, bias = head.rows()
    device_type = hidden.device.type
    if torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    plan = _Plan(tuple(quantities), head.transform, max(1, chunk_logits // weight.shape[0]), reference_head)
    with torch.autocast(device_type, enabled=False):
        values: Tensor = _ChunkedHead.apply(hidden, weight, bias, targets, reference_hidden, plan)  # type: ignore[no-untyped-call]
    return dict(zip(quantities, values.unbind(0), strict=True))


@dataclass(frozen=True)
class _Plan:
    """What the autograd function needs beside its tensors."""

    quantities: tuple[Quantity, ...]
    transform: LogitTransform
    chunk: int
    reference_head: Head | None

    def logits(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self.transform(nn.functional.linear(hidden, weight, bias))

    def reference_logits(self, reference_hidden: Tensor | None, part: slice) -> Tensor | None:
        if reference_hidden is None or self.reference_head is None:
            return None
        weight, bias = self.reference_head.rows()
        raw = nn.functional.linear(reference_hidden[part].to(weight.dtype), weight, bias)
        return self.reference_head.transform(raw)

    def parts(self, n: int) -> list[slice]:
        return [slice(start, min(start + self.chunk, n)) for start in range(0, n, self.chunk)]


class _ChunkedHead(torch.autograd.Function):
    """(hidden [N, H], weight [V, H], bias, targets [N]) -> [Q, N]; the gradient recomputes each chunk's logits."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        reference_hidden: Tensor | None,
        plan: _Plan,
    ) -> Tensor:
        kind = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        values = torch.zeros(len(plan.quantities), len(hidden), dtype=kind, device=hidden.device)
        for part in plan.parts(len(hidden)):
            logits = plan.logits(hidden[part], weight, bias)
            chunk = Chunk(logits, targets[part], plan.reference_logits(reference_hidden, part))
            for row, quantity in zip(values, plan.quantities, strict=True):
                row[part] = quantity.of(chunk)
        ctx.save_for_backward(hidden, weight, bias, targets, reference_hidden)
        ctx.plan = plan
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, reference_hidden = ctx.saved_tensors
        plan: _Plan = ctx.plan
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        accumulate = torch.float64 if weight.dtype == torch.float64 else torch.float32
        d_hidden = torch.zeros_like(hidden) if need_hidden else None
        d_weight = torch.zeros_like(weight, dtype=accumulate) if need_weight else None
        d_bias = torch.zeros_like(bias, dtype=accumulate) if need_bias else None
        for part in plan.parts(len(hidden)):
            logits = plan.logits(hidden[part], weight, bias)
            reference = plan.reference_logits(reference_hidden, part)
            d_logits = _logit_gradient(plan, logits, targets[part], reference, grad[:, part])
            d_raw = d_logits.to(weight.dtype)
            if d_hidden is not None:
                d_hidden[part] = d_raw @ weight
            if d_weight is not None:
                _add_weight_gradient(d_weight, d_logits, hidden[part])
            if d_bias is not None:
                d_bias += d_logits.sum(dim=0)
        return (
            d_hidden,
            None if d_weight is None else d_weight.to(weight.dtype),
            None if d_bias is None else d_bias.to(bias.dtype),
            None,
            None,
            None,
        )


def _add_weight_gradient(total: Tensor, d_logits: Tensor, hidden: Tensor) -> None:
    """total += d_logits^T hidden. total: [V, H], summed over chunks in float32 (float64) whatever the model's dtype.

    On a GPU the product itself is made in the model's dtype, for its tensor cores, and rounded to it once a chunk.
    """
    if hidden.is_cuda and hidden.dtype != total.dtype:
        total += d_logits.t().to(hidden.dtype) @ hidden
    else:
        total.addmm_(d_logits.t(), hidden.to(total.dtype))


def _logit_gradient(plan: _Plan, logits: Tensor, targets: Tensor, reference: Tensor | None, grad: Tensor) -> Tensor:
    """Gradient with respect to the raw logits of one chunk. grad: [Q, n]. Returns [n, V]; may overwrite `logits`."""
    softmax_weight: dict[float, Tensor] = {}
    target_weight: Tensor | None = None
    others: list[tuple[Quantity, Tensor]] = []
    for quantity, g in zip(plan.quantities, grad, strict=True):
        match quantity:
            case Nll():
                softmax_weight[1.0] = softmax_weight.get(1.0, 0) + g
                target_weight = g
            case LogSumExp(temperature=t):
                softmax_weight[t] = softmax_weight.get(t, 0) + g / t
            case _:
                others.append((quantity, g))
    keep = bool(others) or len(softmax_weight) > 1 or plan.transform.softcap is not None
    total = _by_autograd(others, logits, targets, reference) if others else None
    for temperature, scale in softmax_weight.items():
        part = _scaled_softmax_(logits.clone() if keep else logits, temperature, scale)
        total = part if total is None else total.add_(part)
    assert total is not None
    if target_weight is not None:
        total[torch.arange(len(targets), device=targets.device), targets] -= target_weight
    return plan.transform.backward_(total, logits)


def _scaled_softmax_(logits: Tensor, temperature: float, scale: Tensor) -> Tensor:
    """scale * softmax(z / T), in the memory of z. logits: [n, V], scale: [n]."""
    if temperature != 1.0:
        logits.div_(temperature)
    logits.sub_(logits.amax(dim=1, keepdim=True)).exp_()
    return logits.mul_((scale / logits.sum(dim=1)).unsqueeze(1))


def _by_autograd(wanted: list[tuple[Quantity, Tensor]], logits: Tensor, targets: Tensor, reference: Tensor | None) -> Tensor:
    """Sum over quantities of g * d(quantity)/d(logits), [n, V]; zero for a quantity without gradient."""
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        chunk = Chunk(leaf, targets, reference)
        terms = [(value * g).sum() for q, g in wanted if (value := q.of(chunk)).requires_grad]
        if not terms:
            return torch.zeros_like(logits)
        (gradient,) = torch.autograd.grad(torch.stack(terms).sum(), leaf)
    return gradient.contiguous()  # a sum's gradient is one number a row, spread out without memory of its own
