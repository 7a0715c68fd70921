"""The energies of the model's own logits, read where it returns them: by a forward hook, at no second forward.

The hook reads what `forward` returns, with soft caps, scales and everything else that a model does to its logits in them, and
before penalties, warpers or a beam's log-softmax touch them. So an energy does not depend on how tokens are chosen from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from d2unlearn.energy import free_energy
from d2unlearn.errors import GateError
from d2unlearn.observation import causal_model


class EnergyRecorder:
    """While entered, keeps the free energies of the model's latest logits.

    `vocab_rows` leaves out the logits from that index on: rows of the head that the tokenizer has no token for.
    `every_position`: of all positions that the model returned logits for, not of the last alone.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        temperature: float = 1.0,
        vocab_rows: int | None = None,
        every_position: bool = False,
    ) -> None:
        self._model = causal_model(model)
        self._temperature = temperature
        self._vocab_rows = vocab_rows
        self._every_position = every_position
        self._handle: RemovableHandle | None = None
        self._energies: Tensor | None = None
        self._n_forwards = 0
        self.n_fed = 0
        """Tokens that the latest forward pass was fed, a row."""

    def take(self, forwards: int | None = 1) -> Tensor:
        """The energies, float32 [B, R] of the last R positions in order, for the token that was just chosen.

        R is 1 unless `every_position`. `forwards`: passes that should have been made for it (None: any number). Raises
        `GateError` when it were others: then nobody can tell which logits the token was chosen from.
        """
        made, self._n_forwards = self._n_forwards, 0
        if self._energies is None or made == 0:
            raise GateError(
                "a token was chosen from logits that no forward hook saw (is the model compiled?), so no gate can judge it"
            )
        if forwards is not None and made != forwards:
            raise GateError(
                f"the model ran {made} times before one token was chosen, {forwards} expected: something beside `generate` "
                "runs it (guidance, token healing, a logits processor), so the gate cannot tell which logits to judge"
            )
        return self._energies

    def __enter__(self) -> EnergyRecorder:
        self._handle = self._model.register_forward_hook(self._read, with_kwargs=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _read(self, module: torch.nn.Module, arguments: Any, named: Mapping[str, Any], output: Any) -> None:
        logits = output.logits if hasattr(output, "logits") else output[0]
        kept = logits[..., : self._vocab_rows] if self._every_position else logits[:, -1:, : self._vocab_rows]
        with torch.no_grad():
            self._energies = free_energy(kept, self._temperature)
        fed = next((named[key] for key in ("input_ids", "inputs_embeds") if named.get(key) is not None), None)
        self.n_fed = 0 if fed is None else fed.shape[1]
        self._n_forwards += 1
