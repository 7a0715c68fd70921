"""The attacks of an audit, by name. One line lets a new one in."""

from __future__ import annotations

from d2unlearn.audit.parts import AttackPlan

ATTACKS: dict[str, AttackPlan] = {}
"""In the order in which a page shows them."""
