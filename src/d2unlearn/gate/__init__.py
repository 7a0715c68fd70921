"""The energy gate: scores of a request, their calibration with a guarantee, and the policy file."""

from d2unlearn.gate.gate import EnergyGate

__all__ = ["EnergyGate"]
