"""Unlearning methods, one file each. `METHODS` is the whole family; a new method is one file and one line here.

A method that another installed package offers (`d2unlearn.plugins`) needs no line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from d2unlearn.errors import ConfigError
from d2unlearn.head import Head, head_of
from d2unlearn.methods.altpo import AltPO
from d2unlearn.methods.base import AdaptiveMethod, Method, Needs
from d2unlearn.methods.ce_u import CEU
from d2unlearn.methods.deep_eua import DeepEUA
from d2unlearn.methods.dpo import DPO
from d2unlearn.methods.eua import EUA
from d2unlearn.methods.gradient_ascent import GradientAscent
from d2unlearn.methods.gradient_difference import GradientDifference
from d2unlearn.methods.idk import IDK
from d2unlearn.methods.idk_ap import IDKAP
from d2unlearn.methods.max_entropy import MaxEntropy
from d2unlearn.methods.npo import NPO
from d2unlearn.methods.pdu import PDU
from d2unlearn.methods.rmu import RMU
from d2unlearn.methods.satimp import SatImp
from d2unlearn.methods.simnpo import SimNPO
from d2unlearn.methods.undial import UNDIAL
from d2unlearn.methods.wga import WGA
from d2unlearn.observation import Batch, Observed, Values, causal_model, observe, observed
from d2unlearn.plugins import Family, load_plugin
from d2unlearn.schema import Role

__all__ = [
    "EUA",
    "METHODS",
    "METHOD_FAMILY",
    "AdaptiveMethod",
    "Method",
    "Needs",
    "batch_loss",
    "method_named",
    "reference_batch_values",
    "seen_by",
]

METHODS: dict[str, Callable[..., Method]] = {
    "eua": EUA,
    "deep_eua": DeepEUA,
    "gradient_ascent": GradientAscent,
    "gradient_difference": GradientDifference,
    "npo": NPO,
    "simnpo": SimNPO,
    "wga": WGA,
    "satimp": SatImp,
    "ce_u": CEU,
    "undial": UNDIAL,
    "rmu": RMU,
    "max_entropy": MaxEntropy,
    "pdu": PDU,
    "altpo": AltPO,
    "idk": IDK,
    "dpo": DPO,
    "idk_ap": IDKAP,
}
METHOD_FAMILY = Family("method", "d2unlearn.methods", METHODS.keys())


def method_named(name: str) -> Callable[..., Method]:
    """The method of this name: one of `METHODS`, or one that another installed package offers. Raises `ConfigError`."""
    return METHODS[name] if name in METHODS else load_plugin(METHOD_FAMILY, name, Method)  # type: ignore[type-abstract]


def batch_loss(method: Method, model: nn.Module, batch: Mapping[str, Mapping[str, object]], *, reference: nn.Module) -> Tensor:
    """Any method's loss on one batch, with a live reference model: for parity tests, and for debugging a method.

    batch: {role: {"input_ids", "attention_mask", "labels"}}, each [B, T] as a tensor or nested lists, labels -100 outside
    the answer. Returns the scalar loss, with gradients to `model` only. Both models run in the mode they are in. Raises
    `ConfigError` for a role that the method reads and the batch lacks.
    """
    method = method.for_model(model)
    missing = [role for role in method.needs if role not in batch]
    if missing:
        raise ConfigError([f"{type(method).__name__} reads {', '.join(method.needs)}; the batch lacks {', '.join(missing)}"])
    device = next(model.parameters()).device
    batches: dict[Role, Batch] = {
        role: Batch(**{key: torch.as_tensor(batch[role][key], device=device) for key in Batch.__annotations__})
        for role in method.needs
    }
    frozen = reference_batch_values(method, reference, batches)
    return method.loss(seen_by(method, model, batches, frozen, head_of(causal_model(reference))))


def seen_by(
    method: Method,
    model: nn.Module,
    batches: Mapping[Role, Batch],
    reference: Mapping[Role, Values],
    reference_head: Head | None,
    *,
    vocab_rows: int | None = None,
    totals: Mapping[Role, tuple[float, float]] | None = None,
) -> dict[Role, Observed]:
    """What the method's loss gets, by one forward of the model over all batches. reference: its values at the same positions.

    totals: (positions, rows) of each role in the whole effective batch; None: these batches are all of it.
    """
    wanted = {role: needs.policy for role, needs in method.needs.items()}
    positions = {role: needs.positions for role, needs in method.needs.items()}
    policy = observe(
        model, batches, wanted, positions=positions, reference=reference, reference_head=reference_head, vocab_rows=vocab_rows
    )
    seen = {}
    for role in wanted:
        n_positions, n_rows = (totals or {}).get(role, (None, None))
        seen[role] = observed(
            batches[role],
            policy[role],
            reference[role],
            positions=positions[role],
            total_positions=n_positions,
            total_rows=n_rows,
        )
    return seen


@torch.no_grad()
def reference_batch_values(
    method: Method, reference: nn.Module, batches: Mapping[Role, Batch], *, vocab_rows: int | None = None
) -> Mapping[Role, Values]:
    """What the method reads of the frozen reference on these batches: {role: {quantity: [N]}}, without gradients."""
    wanted = {role: needs.reference for role, needs in method.needs.items()}
    positions = {role: needs.positions for role, needs in method.needs.items()}
    asked = {role: batch for role, batch in batches.items() if wanted[role]}
    values: dict[Role, Values] = {role: {} for role in batches}
    if asked:
        values.update(observe(reference, asked, wanted, positions=positions, vocab_rows=vocab_rows))
    return values
