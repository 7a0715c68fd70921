"""Whether model, tokenizer and prompts fit each other, said before anything is computed: rows of the embedding, the context."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from d2unlearn.errors import DataError, ModelError

_NAMED = 5


def plain_config(source: str | Path) -> dict[str, Any]:
    """What config.json says of the language model, as it stands there; nothing where it cannot be read."""
    try:
        found: dict[str, Any] = PreTrainedConfig.get_config_dict(str(source))[0]
    except Exception:  # whatever a hub client or a damaged file raises: whoever loads the model says it
        return {}
    text = found.get("text_config")
    return {**found, **text} if isinstance(text, dict) else found


def check_rows(tokenizer: PreTrainedTokenizerBase, source: str | Path) -> None:
    """Raises `ModelError` where a token that may be written has no row in the embedding of the model in `source`.

    A special token that stands in no chat template is never written: a person's spelling of it stays text.
    """
    rows = plain_config(source).get("vocab_size")
    if not isinstance(rows, int) or len(tokenizer) <= rows:
        return
    beyond = {text: i for text, i in sorted(tokenizer.get_vocab().items(), key=lambda each: each[1]) if i >= rows}
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    used = {str(tokenizer.bos_token), str(tokenizer.eos_token), str(tokenizer.pad_token)}
    templates = str(tokenizer.chat_template)
    written = [text for text in beyond if text not in special or text in used or text in templates]
    if written:
        raise ModelError(
            f"{source}: the tokenizer has ids up to {max(beyond.values())}, the model has {rows} rows: the tokens "
            f"{', '.join(written[:_NAMED])} were added without resize_token_embeddings, or it is another model's tokenizer"
        )


def check_room(prompt: Sequence[int], context: int | None, where: str) -> None:
    """Raises `DataError` for a prompt that leaves no token of the model's context to an answer."""
    if context is not None and len(prompt) >= context:
        raise DataError(f"{where}: a prompt of {len(prompt)} tokens leaves no room in the model's context of {context}")
