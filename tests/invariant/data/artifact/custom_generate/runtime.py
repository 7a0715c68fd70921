# Made from d2unlearn/runtime.py by d2unlearn 0.1.0. Calibration writes it again.
from __future__ import annotations

import hashlib
import json


def fingerprint(value: object) -> str:
    """sha256 of the value's canonical JSON; equal values give equal fingerprints on every machine."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()
