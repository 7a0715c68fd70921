"""Which retained rows are never trained on, and which of those calibrate the gate.

Rows are drawn by the hash of their content with the seed, so that the choice does not depend on their order in the file and a
later command finds the same rows again. Equal rows fall on the same side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from d2unlearn.data.records import content_hash
from d2unlearn.runtime import fingerprint
from d2unlearn.schema import Example

_HELD_OUT_SHARE = 0.1
AT_LEAST = 400
_VALIDATION_SHARE = 0.35


class HeldOut(NamedTuple):
    """Retained rows that training sees, and those set aside for validation and calibration."""

    train: list[Example]
    held_out: list[Example]


def hold_out(examples: Sequence[Example], *, seed: int) -> HeldOut:
    """Set aside a seeded tenth of the retained rows, at least 400, and at most half of what there is."""
    count = min(max(math.ceil(_HELD_OUT_SHARE * len(examples)), AT_LEAST), len(examples) // 2)
    chosen = set(_drawn_order(examples, seed)[:count])
    return HeldOut(
        train=[example for example in examples if content_hash(example) not in chosen],
        held_out=[example for example in examples if content_hash(example) in chosen],
    )


def split_validation(
    held_out: Sequence[Example], *, seed: int, share: float = _VALIDATION_SHARE
) -> tuple[list[Example], list[Example]]:
    """(validation, calibration): what choices are made on, and what the threshold alone is computed from."""
    order = _drawn_order(held_out, seed + 1)
    chosen = set(order[: round(share * len(order))])
    validation = [example for example in held_out if content_hash(example) in chosen]
    return validation, [example for example in held_out if content_hash(example) not in chosen]


def _drawn_order(examples: Sequence[Example], seed: int) -> list[str]:
    """The rows' distinct content hashes in an order that looks random and depends on seed and content alone."""
    return sorted({content_hash(example) for example in examples}, key=lambda h: fingerprint([seed, h]))
