"""Rivals that leave the weights alone and guard them at inference, one file each. `GUARDS` is the whole family."""

from __future__ import annotations

from d2unlearn.guards.base import Guard, GuardInputs, ModelBehindGuard
from d2unlearn.guards.embedding_corruption import EmbeddingCorruption
from d2unlearn.guards.input_classifier import InputClassifier
from d2unlearn.guards.prompt_guard import PromptGuard

__all__ = ["GUARDS", "Guard", "GuardInputs", "ModelBehindGuard"]

GUARDS: dict[str, type[Guard]] = {
    "prompt_guard": PromptGuard,
    "input_classifier": InputClassifier,
    "embedding_corruption": EmbeddingCorruption,
}
