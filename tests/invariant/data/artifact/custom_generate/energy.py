# Made from d2unlearn/energy.py by d2unlearn 0.1.0. Calibration writes it again.
from __future__ import annotations

import math
import torch
from torch import Tensor
from .errors import ConfigError


def free_energy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """`-T * logsumexp(z / T)` over the last dimension, in float32 (float64 stays float64).

    logits: [..., V], any floating dtype. Returns [...]. Raises `ConfigError` for a temperature that is not positive.
    Source: Liu et al. 2020, eq. 4.
    """
    return -logsumexp(logits, temperature) * temperature


def logsumexp(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """`logsumexp(z / T)` over the last dimension, in float32. logits: [..., V]. Returns [...]."""
    check_temperature(temperature)
    logits = at_least_float32(logits)
    return torch.logsumexp(logits if temperature == 1.0 else logits / temperature, dim=-1)


def check_temperature(temperature: float) -> None:
    """Raises `ConfigError` unless the temperature is a positive, finite number."""
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ConfigError([f"temperature must be a positive number, not {temperature}"])


def at_least_float32(values: Tensor) -> Tensor:
    """float16 and bfloat16 raised to float32; float32 and float64 as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
