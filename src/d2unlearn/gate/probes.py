"""Prompts whose energies tell whether weights in memory are those that were calibrated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from d2unlearn.data.batching import pad_left
from d2unlearn.energy import free_energy
from d2unlearn.errors import GateError, ModelError
from d2unlearn.gate.recorder import EnergyRecorder
from d2unlearn.models import generate_plainly

PROBE_TOLERANCE = {"float32": 0.002, "float64": 0.002, "bfloat16": 0.1, "float16": 0.05}
"""nats, the least that probes may differ by, by the dtype that was calibrated. See `check_probes`."""

SAME_LOGITS = 1e-3
"""nats, by which the energies of the same logits, read in two places, may differ."""


@dataclass(frozen=True)
class Probe:
    """A retained prompt and its energy at the last position (nats), with the calibrated weights."""

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


def check_probes(
    model: PreTrainedModel,
    probes: Sequence[Probe],
    tolerance: float,
    dtype: str,
    temperature: float,
    vocab_rows: int | None,
) -> None:
    """Raises `GateError` unless the model gives the stored probe prompts the energies they had, within the tolerance.

    The tolerance allows what rounding does and not what could move decisions. Measured on a 4M Llama, energies near -27:
    another batch shape moves float32 energies by 2e-5 nats; a cast to bfloat16 moves the worst of 8 probes by 0.07 to 0.15,
    int8 weights by 0.10 to 0.21, a cast to float16 by 0.01 to 0.02. So 0.002 in float32. In bfloat16 the batch shape alone
    moves energies by 0.25: there the tolerance is three times what padding did at calibration, and probes can only tell other
    models, not int8 from bfloat16.
    """
    if not probes:
        raise GateError("the gate holds no probe prompts to recognise these weights by; recalibrate")
    prompts = [list(probe.token_ids) for probe in probes]
    if max(max(prompt) for prompt in prompts) >= model.config.get_text_config().vocab_size:
        raise GateError("the gate was calibrated on a model with a larger vocabulary; recalibrate on this model")
    found = prompt_energies(model, prompts, temperature, vocab_rows)
    moved = float(np.max(np.abs(found - np.array([probe.energy for probe in probes]))))
    if not moved <= tolerance:
        raise GateError(
            f"these weights are not those the gate was calibrated on: the energy of a probe prompt differs by {moved:.3g} nats "
            f"(allowed: {tolerance:.3g}; calibrated in {dtype}, running in {dtype_name(model)}); recalibrate with the model as "
            "it runs"
        )


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
