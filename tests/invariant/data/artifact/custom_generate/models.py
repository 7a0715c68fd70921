# Made from d2unlearn/models.py by d2unlearn 0.1.0. Calibration writes it again.
from __future__ import annotations


GATE_COPY = "d2_gate"
