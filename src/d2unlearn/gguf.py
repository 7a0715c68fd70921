"""Models in the one-file form of llama.cpp: dequantised once and kept as a normal model folder in the cache."""

from __future__ import annotations

import importlib.util
import io
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from d2unlearn.errors import ModelError, border
from d2unlearn.runtime import cache_dir, hash_file, said_if_long, say
from d2unlearn.saving import save_model


def is_gguf(source: str | Path) -> bool:
    """Whether it is a file in the form of llama.cpp, by its name or its first bytes."""
    path = Path(source)
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return path.suffix.lower() == ".gguf" or file.read(4) == b"GGUF"


def folder_of_gguf(source: str | Path) -> Path:
    """The folder of a GGUF file's weights in float32, tokenizer and chat template: a normal model folder.

    It lies in the cache under the file's hash; the first call makes it, which needs the package `gguf`, and says so. Raises
    `ModelError` where that is missing, or for a file that is damaged or of a kind that transformers cannot read.
    """
    path = Path(source)
    folder = cache_dir() / "gguf" / f"{path.stem}-{hash_file(path)[:16]}"
    if not folder.is_dir():
        if importlib.util.find_spec("gguf") is None:
            raise ModelError(
                f"{source} is a GGUF file, and the package that reads it is missing: pip install 'd2unlearn[demo]'"
            )
        with said_if_long(f"dequantising {source}"):
            model, tokenizer = _dequantised(path)
            save_model(model, tokenizer, folder)
        say(f"{source} is quantised: transformers made float32 weights of it, which are kept in {folder}")
    return folder


def _dequantised(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a GGUF file; of a quantisation the configuration says nothing, or it could not be saved."""
    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    failed = f"{path} could not be read as a GGUF model, or is damaged"
    with border(ModelError, failed), redirect_stderr(io.StringIO()):  # a bar that no setting of transformers' hides
        loaded: Any = AutoModelForCausalLM.from_pretrained(**where, output_loading_info=True)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(**where)
    model, missing = loaded[0], sorted(loaded[1]["missing_keys"])
    if missing:
        raise ModelError(f"{path} holds no whole model: it lacks {', '.join(missing[:3])}")
    vars(model.config).pop("quantization_config", None)
    plain: PreTrainedModel = type(model)(model.config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    return plain, tokenizer
