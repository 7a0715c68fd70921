"""Everything that training needs of the frozen model (the reference), computed once, before the first step.

Margins and log-probabilities depend on the frozen weights and the data alone: one float per answer token and quantity (H of
them for a hidden state). They are stored under a key of weights, token ids and quantities; with them at hand no second model
stays in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from d2unlearn.data.batching import by_length, pad_tokens
from d2unlearn.errors import ConfigError
from d2unlearn.head import Head, head_of
from d2unlearn.methods import Method, reference_batch_values
from d2unlearn.models import state_hash
from d2unlearn.observation import Values, causal_model
from d2unlearn.positions import Positions, Predicting
from d2unlearn.quantities import HiddenState, Observable, Quantity
from d2unlearn.runtime import atomic_path, fingerprint, progress
from d2unlearn.schema import Role, Tokens
from d2unlearn.sharding import whole

_FORMAT = 2
SILENT = (
    "_name_or_path",
    "architectures",
    "base_model_name_or_path",
    "inference_mode",
    "revision",
    "transformers_version",
    "use_cache",
)


FrozenValues = dict[Role, list[Values]]
"""What the frozen model says of each row of a role: {quantity: [positions]} ([positions, H] for hidden states).

The positions are those that the method asks for; where padding counts, as many as in a batch as wide as the longest row, of
which a narrower batch has the first.
"""


def frozen_values(
    model: nn.Module,
    method: Method,
    rows: Mapping[Role, Sequence[Tokens]],
    *,
    cache: Path | None = None,
    batch_size: int = 16,
    vocab_rows: int | None = None,
) -> FrozenValues:
    """Run the model as it is now, in evaluation mode, over every row whose role the method asks about.

    With `cache`, a folder, values are stored there and read back when weights, token ids and quantities are the same.
    """
    wanted = {role: needs.reference for role, needs in method.needs.items()}
    values: FrozenValues = {role: [{}] * len(role_rows) for role, role_rows in rows.items()}
    if not any(wanted.values()):
        return values
    lengths = {role: _lengths(rows[role], needs.positions) for role, needs in method.needs.items()}
    path = None if cache is None else cache / f"reference-{cache_key(model, method, rows, vocab_rows)[:32]}.safetensors"
    if path is not None and path.is_file():
        stored = load_file(path)
        for role, quantities in wanted.items():
            flat = {q: stored[f"{role}/{q!r}"] for q in quantities}
            values[role] = _by_row(flat, lengths[role])
        return values
    for role, quantities in wanted.items():
        if quantities:
            values[role] = _run(model, method, role, rows[role], lengths[role], batch_size, vocab_rows)
    if path is not None:
        with atomic_path(path) as staged:
            save_file({f"{r}/{q!r}": torch.cat([row[q] for row in values[r]]) for r in wanted for q in wanted[r]}, staged)
    return values


def frozen_head(model: nn.Module, method: Method, vocab_rows: int | None) -> Head | None:
    """A copy of the reference's LM head, for methods that read its logits; None for all others."""
    reading = [needs for needs in method.needs.values() if any(_reads_logits(quantity) for quantity in needs.policy)]
    if not reading:
        return None
    if any(HiddenState() not in needs.reference for needs in reading):
        raise ConfigError(["a method that reads the reference's logits has to ask for its HiddenState() too"])
    return copied_head(model, vocab_rows)


def copied_head(model: nn.Module, vocab_rows: int | None) -> Head:
    """The LM head as it is now, whatever training does to it; gathered where it is spread over processes."""
    head = head_of(causal_model(model), vocab_rows=vocab_rows)
    bias = None if head.bias is None else whole(head.bias).clone()
    return Head(whole(head.weight).clone(), bias, head.transform, head.vocab_rows)


def _reads_logits(quantity: Observable) -> bool:
    return isinstance(quantity, Quantity) and quantity.reads_reference_logits


def cache_key(model: nn.Module, method: Method, rows: Mapping[Role, Sequence[Tokens]], vocab_rows: int | None) -> str:
    """sha256 over all that the stored values depend on."""
    return fingerprint(
        {
            "format": _FORMAT,
            "weights": state_hash(model),
            "settings": model_settings(model),
            "rows": {role: fingerprint([[row.input_ids, row.answer_mask] for row in tokens]) for role, tokens in rows.items()},
            "quantities": {role: [repr(q) for q in needs.reference] for role, needs in method.needs.items()},
            "positions": {role: repr(needs.positions) for role, needs in method.needs.items()},
            "vocab_rows": vocab_rows,
        }
    )


def model_settings(model: nn.Module) -> dict[str, Any]:
    """What a model computes beside its weights: its configuration, and that of its adapters (their scale is no weight)."""
    config = causal_model(model).config.to_dict()  # type: ignore[union-attr, operator]
    adapters = {name: _plain(adapter.to_dict()) for name, adapter in (getattr(model, "peft_config", None) or {}).items()}
    active = [str(name) for name in getattr(model, "active_adapters", ())] if adapters else []
    return {"config": _plain(config), "adapters": adapters, "active": active}


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Without what says nothing of the values (names, places, versions, special tokens), and with sets in order."""
    kept = {key: value for key, value in settings.items() if key not in SILENT and not key.endswith("_token_id")}
    return {key: sorted(map(str, value)) if isinstance(value, set) else value for key, value in kept.items()}


def _run(
    model: nn.Module,
    method: Method,
    role: Role,
    rows: Sequence[Tokens],
    lengths: Sequence[int],
    batch_size: int,
    vocab_rows: int | None,
) -> list[Values]:
    """What the model says of each row of one role."""
    device, was_training = next(model.parameters()).device, model.training
    width = _width(rows, method.needs[role].positions)
    values: list[Values] = [{}] * len(rows)
    model.eval()
    for indices in progress(list(by_length([len(row.input_ids) for row in rows], batch_size)), f"reference pass, {role}"):
        batch = pad_tokens([rows[i] for i in indices], pad_id=0, width=width).to(device)
        flat = reference_batch_values(method, model, {role: batch}, vocab_rows=vocab_rows)[role]
        by_row = _by_row({q: flat[q].cpu() for q in flat}, [lengths[i] for i in indices])
        for index, row_values in zip(indices, by_row, strict=True):
            values[index] = row_values
    model.train(was_training)
    return values


def _by_row(flat: Values, lengths: Sequence[int]) -> list[Values]:
    """Values that stand row after row, cut into rows."""
    parts = {quantity: torch.split(values, list(lengths)) for quantity, values in flat.items()}
    return [{quantity: parts[quantity][row] for quantity in parts} for row in range(len(lengths))]


def _width(rows: Sequence[Tokens], positions: Positions) -> int | None:
    """The width of the reference pass's batches: the longest row's where padding counts, else each batch's own (None)."""
    return max(len(row.input_ids) for row in rows) if positions.counts_padding else None


def _lengths(rows: Sequence[Tokens], positions: Positions) -> list[int]:
    """How many positions each row has in the reference pass."""
    if positions == Predicting():
        return [row.answer_length for row in rows]
    width = _width(rows, positions)
    masks = (positions.mask(pad_tokens([row], pad_id=0, width=width).labels) for row in rows)
    return [int(mask.sum()) for mask in masks]
