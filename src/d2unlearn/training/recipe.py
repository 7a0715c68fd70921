"""A learning rate, an effective batch and a number of epochs that work without a hunt, from the size of model and data.

The published recipe, 1e-5 with 4 batches of 8 an update, is for models of a billion parameters and more. Smaller ones are
trained on less data and need more and larger steps: both rules run through (1e9 parameters, the published value) and what was
measured (docs/log.md) on the small TOFU model of 4.2e6 and on the quickstart's of 1.1e6, straight in logarithms between these,
and stay where they are beyond. Low-rank adapters start from zero and move few numbers: ten times the rate, the field's rule of
thumb. Few rows make few updates an epoch: then there are more epochs, until there are as many updates as ten epochs of TOFU's
forget10 make.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

RATES = ((1.1e6, 5e-4), (4.2e6, 3e-4), (1e9, 1e-5))
"""(parameters, learning rate): two measured, one published."""
PUBLISHED_ACCUMULATION = 4
PUBLISHED_EPOCHS = 10
PUBLISHED_ROWS = 400
MOST_EPOCHS = 50
LARGE = 1e9
SMALL = 4.2e6
LORA_FACTOR = 10.0
LORA_LARGEST = 3e-3


class Pace(NamedTuple):
    """How large a step is, how many batches make one, and how often the forget rows are passed."""

    learning_rate: float
    accumulation: int
    epochs: float


def automatic_learning_rate(parameters: int, *, lora: bool) -> float:
    """Learning rate for AdamW, rounded to two digits. `parameters`: how many the whole model has."""
    sizes, rates = np.log(np.array(RATES)).T
    rate = float(np.exp(np.interp(math.log(max(parameters, 1)), sizes, rates)))
    if lora:
        rate = min(rate * LORA_FACTOR, LORA_LARGEST)
    return float(f"{rate:.1e}")


def automatic_accumulation(parameters: int) -> int:
    """Batches that make one update: 4 for a large model, 1 for a small one."""
    return round(math.pow(PUBLISHED_ACCUMULATION, 1 - _smallness(parameters)))


def automatic_epochs(forget_rows: int, pairs: int) -> int:
    """10 for 400 rows or more, more for fewer, 50 at most. `pairs`: of an update, on all devices together."""
    wanted, per_epoch = PUBLISHED_EPOCHS * math.ceil(PUBLISHED_ROWS / pairs), math.ceil(max(forget_rows, 1) / pairs)
    return min(max(PUBLISHED_EPOCHS, math.ceil(wanted / per_epoch)), MOST_EPOCHS)


def _smallness(parameters: int) -> float:
    """0 from `LARGE` parameters on, 1 up to `SMALL`, linear in the logarithm between."""
    share = math.log(LARGE / max(parameters, 1)) / math.log(LARGE / SMALL)
    return min(max(share, 0.0), 1.0)
