"""The gate tests' tiny model and its gate."""

from __future__ import annotations

from gate.conftest import gate, model, tokenizer

__all__ = ["gate", "model", "tokenizer"]
