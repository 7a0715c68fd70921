"""Prompts whose energies tell whether weights in memory are those that were calibrated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from d2unlearn.data.batching import pad_left
from d2unlearn.energy import free_energy
from d2unlearn.errors import ModelError
from d2unlearn.gate.recorder import EnergyRecorder
from d2unlearn.models import generate_plainly

PROBE_TOLERANCE = {"float32": 0.002, "float64": 0.002, "bfloat16": 0.1, "float16": 0.05}
"""nats, the least that probes may differ by, by the dtype that was calibrated. See `GateRule.check_probes`."""

SAME_LOGITS = 1e-3
"""nats, by which the energies of the same logits, read in two places, may differ."""


@dataclass(frozen=True)
class Probe:
    """A prompt (of `probe_texts`) and its energy at the last position (nats), with the calibrated weights."""

    token_ids: tuple[int, ...]
    energy: float


def make_probes(
    model: PreTrainedModel, prompts: list[list[int]], temperature: float, vocab_rows: int | None
) -> tuple[tuple[Probe, ...], float]:
    """Probes measured one by one, and the tolerance: what padding them into one batch changes tells how much rounding does."""
    alone = np.concatenate([prompt_energies(model, [prompt], temperature, vocab_rows) for prompt in prompts])
    together = prompt_energies(model, prompts, temperature, vocab_rows)
    least = PROBE_TOLERANCE.get(dtype_name(model), 0.1)
    tolerance = max(least, 3 * float(np.abs(alone - together).max()))
    return tuple(Probe(tuple(p), float(e)) for p, e in zip(prompts, alone, strict=True)), tolerance


def dtype_name(model: PreTrainedModel) -> str:
    return str(model.dtype).removeprefix("torch.")


@torch.inference_mode()
def prompt_energies(
    model: PreTrainedModel, prompts: list[list[int]], temperature: float, vocab_rows: int | None
) -> NDArray[np.float64]:
    """Energy at the last position of each prompt, [N], in one left-padded batch and by the road that generation takes.

    Raises `ModelError` when the logits that the hook reads are not those that `generate` chooses from.
    """
    ids, mask = (t.to(model.device) for t in pad_left(prompts, 0))
    with EnergyRecorder(model, temperature=temperature, vocab_rows=vocab_rows) as recorder:
        output = generate_plainly(
            model, ids, mask, max_new_tokens=1, pad_id=0, ends=(), return_dict_in_generate=True, output_logits=True
        )
        energies = recorder.take()[:, -1]
    differ = float((energies - free_energy(output.logits[0][:, :vocab_rows], temperature)).abs().max())
    if differ > SAME_LOGITS:
        raise ModelError(
            f"{type(model).__name__} chooses tokens from other logits than a forward hook reads: their energies differ by "
            f"{differ:.3g} nats, so no gate can guard it"
        )
    return energies.double().cpu().numpy()
