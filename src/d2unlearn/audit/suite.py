"""The attacks of an audit, by name. One line lets a new one in."""

from __future__ import annotations

from d2unlearn.audit.parts import AttackPlan
from d2unlearn.audit.plans import (
    compression,
    gate,
    layers,
    membership,
    paraphrases,
    probing,
    relearning,
    sampling,
    storage,
    universal_prefix,
    wordings,
)

ATTACKS: dict[str, AttackPlan] = {
    plan.name: plan
    for plan in (
        relearning.PLAN,
        layers.PLAN,
        storage.PLAN,
        probing.PLAN,
        compression.PLAN,
        wordings.PLAN,
        paraphrases.PLAN,
        sampling.PLAN,
        universal_prefix.PLAN,
        gate.PLAN,
        membership.PLAN,
    )
}
"""In the order in which a page shows them."""
