"""Everything that training needs of the frozen reference, computed once, before the first step.

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
from torch import Tensor, nn

from d2unlearn.data.batching import by_length, pad_tokens
from d2unlearn.methods import Method, reference_batch_values
from d2unlearn.models import state_hash
from d2unlearn.observation import Values, causal_model
from d2unlearn.positions import Positions, Predicting
from d2unlearn.quantities import Observable
from d2unlearn.runtime import atomic_path, fingerprint, progress
from d2unlearn.schema import Role, Tokens

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


class Reference:
    """The stored values of a frozen reference: for each role and row, {quantity: [positions]}."""

    def __init__(self, flat: Mapping[Role, Mapping[Observable, Tensor]], lengths: Mapping[Role, Sequence[int]]) -> None:
        self._rows: dict[Role, dict[Observable, tuple[Tensor, ...]]] = {
            role: {q: torch.split(values, list(lengths[role])) for q, values in quantities.items()}
            for role, quantities in flat.items()
        }

    def at(self, role: Role, row: int) -> Values:
        """What the reference says of one row: {quantity: [positions]} ([positions, H] for hidden states).

        The positions are those that the method asks for; where padding counts, as many as in a batch as wide as the longest
        row, of which a narrower batch has the first.
        """
        return {quantity: values[row] for quantity, values in self._rows[role].items()}


def compute_reference(
    model: nn.Module,
    method: Method,
    rows: Mapping[Role, Sequence[Tokens]],
    *,
    cache: Path | None = None,
    batch_size: int = 16,
    vocab_rows: int | None = None,
) -> Reference:
    """Run the model as it is now, in evaluation mode, over every row whose role the method asks about.

    With `cache`, a folder, values are stored there and read back when weights, token ids and quantities are the same.
    """
    wanted = {role: needs.reference for role, needs in method.needs.items()}
    if not any(wanted.values()):
        return Reference({role: {} for role in rows}, {role: [] for role in rows})
    lengths = {role: _lengths(rows[role], needs.positions) for role, needs in method.needs.items()}
    path = None if cache is None else cache / f"reference-{cache_key(model, method, rows, vocab_rows)[:32]}.safetensors"
    if path is not None and path.is_file():
        return Reference(_named(load_file(path), wanted), lengths)
    flat = _run(model, method, rows, lengths, batch_size, vocab_rows)
    if path is not None:
        with atomic_path(path) as staged:
            save_file({f"{r}/{q!r}": v.contiguous() for r, quantities in flat.items() for q, v in quantities.items()}, staged)
    return Reference(flat, lengths)


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
    rows: Mapping[Role, Sequence[Tokens]],
    lengths: Mapping[Role, Sequence[int]],
    batch_size: int,
    vocab_rows: int | None,
) -> dict[Role, dict[Observable, Tensor]]:
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    flat: dict[Role, dict[Observable, Tensor]] = {}
    for role, needs in method.needs.items():
        by_row: list[Values] = [{}] * len(rows[role])
        batches = list(by_length([len(row.input_ids) for row in rows[role]], batch_size)) if needs.reference else []
        for indices in progress(batches, f"reference pass, {role}"):
            batch = pad_tokens([rows[role][i] for i in indices], pad_id=0, width=_width(rows[role], needs.positions)).to(device)
            values = reference_batch_values(method, model, {role: batch}, vocab_rows=vocab_rows)[role]
            parts = {q: torch.split(v.cpu(), [lengths[role][i] for i in indices]) for q, v in values.items()}
            for at, index in enumerate(indices):
                by_row[index] = {q: part[at] for q, part in parts.items()}
        flat[role] = {q: torch.cat([values[q] for values in by_row]) for q in needs.reference}
    model.train(was_training)
    return flat


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


def _named(stored: Mapping[str, Tensor], wanted: Mapping[Role, Sequence[Observable]]) -> dict[Role, dict[Observable, Tensor]]:
    return {role: {q: stored[f"{role}/{q!r}"] for q in quantities} for role, quantities in wanted.items()}
