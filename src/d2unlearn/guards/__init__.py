"""Rivals that leave the weights alone and guard them at inference, one file each. `GUARDS` is the whole family.

A guard that another installed package offers (`d2unlearn.plugins`) needs no line.
"""

from __future__ import annotations

from typing import Any, get_type_hints

from d2unlearn.errors import ConfigError
from d2unlearn.fields import typed
from d2unlearn.guards.base import Guard, GuardInputs, ModelBehindGuard, RefusesPrompts
from d2unlearn.guards.embedding_corruption import EmbeddingCorruption
from d2unlearn.guards.input_classifier import InputClassifier
from d2unlearn.guards.prompt_guard import PromptGuard
from d2unlearn.plugins import Family, load_plugin

__all__ = ["GUARDS", "GUARD_FAMILY", "Guard", "GuardInputs", "ModelBehindGuard", "RefusesPrompts", "build_guard"]

GUARDS: dict[str, type[Guard]] = {
    "prompt_guard": PromptGuard,
    "input_classifier": InputClassifier,
    "embedding_corruption": EmbeddingCorruption,
}
GUARD_FAMILY = Family("guard", "d2unlearn.guards", GUARDS.keys())


def build_guard(name: str, parameters: dict[str, Any]) -> Guard:
    """A guard by its name and parameters. Raises `ConfigError` for names or parameters that do not exist."""
    made = GUARDS[name] if name in GUARDS else load_plugin(GUARD_FAMILY, name, Guard)  # type: ignore[type-abstract]
    given, mistakes = typed(parameters, get_type_hints(made))
    if mistakes:
        raise ConfigError([f"guard {name}: {mistake}" for mistake in mistakes])
    return made(**given)
