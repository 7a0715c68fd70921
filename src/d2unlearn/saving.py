"""A model and its tokenizer as a folder."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from d2unlearn.errors import ArtifactError
from d2unlearn.runtime import atomic_path


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, target: Path) -> None:
    """Write model and tokenizer to a folder that appears when it is whole; one that another process made first is kept.

    Raises `ArtifactError` when it cannot be written.
    """
    try:
        with atomic_path(target) as staged:
            model.save_pretrained(staged)
            tokenizer.save_pretrained(staged)
    except ArtifactError:
        if not target.is_dir():
            raise
