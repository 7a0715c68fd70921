"""A learning rate that works without a hunt, from the number of parameters.

The published rate, 1e-5, is for models of a billion parameters and more. Smaller ones need larger steps: the rule below runs
through (1e9 parameters, 1e-5) and (4.2e6, 5e-4), the second measured on the small TOFU model (docs/results.md), and stays
between the two. Low-rank adapters start from zero and move few numbers: ten times the rate, the field's rule of thumb.
"""

from __future__ import annotations

import math

PUBLISHED = 1e-5
LARGE = 1e9
SMALL = 4.2e6
LARGEST = 5e-4
LORA_FACTOR = 10.0
LORA_LARGEST = 3e-3
SLOPE = math.log(LARGEST / PUBLISHED) / math.log(LARGE / SMALL)


def automatic_learning_rate(parameters: int, *, lora: bool) -> float:
    """Learning rate for AdamW, rounded to two digits. `parameters`: how many the whole model has."""
    rate = min(max(PUBLISHED * (LARGE / max(parameters, 1)) ** SLOPE, PUBLISHED), LARGEST)
    if lora:
        rate = min(rate * LORA_FACTOR, LORA_LARGEST)
    return float(f"{rate:.1e}")
