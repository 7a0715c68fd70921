"""Which retained rows are never trained on, and which of those calibrate the gate.

Rows are drawn by their key with the seed, so that the choice does not depend on their order in the file and a later command
finds the same rows again, also in a file that was saved anew. Rows that are equal but for letter case and spacing fall on the
same side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from d2unlearn.data.identity import folded_key, row_key
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
    held_out, train = _parted(examples, _drawn_order(examples, seed)[:count])
    return HeldOut(train, held_out)


def split_validation(
    held_out: Sequence[Example], *, seed: int, share: float = _VALIDATION_SHARE
) -> tuple[list[Example], list[Example]]:
    """(validation, calibration): what choices are made on, and what the threshold alone is computed from."""
    order = _drawn_order(held_out, seed + 1)
    return _parted(held_out, order[: round(share * len(order))])


def _drawn_order(examples: Sequence[Example], seed: int) -> list[str]:
    """The rows' distinct keys in an order that looks random and depends on seed and content alone."""
    return sorted({row_key(example) for example in examples}, key=lambda key: fingerprint([seed, key]))


def _parted(examples: Sequence[Example], drawn: Sequence[str]) -> tuple[list[Example], list[Example]]:
    """(the rows of the keys drawn and what equals them but for case and spacing, the others), each in its order."""
    keys, folds = set(drawn), [folded_key(example) for example in examples]
    chosen = {fold for fold, example in zip(folds, examples, strict=True) if row_key(example) in keys}
    sides: tuple[list[Example], list[Example]] = ([], [])
    for fold, example in zip(folds, examples, strict=True):
        sides[fold not in chosen].append(example)
    return sides
